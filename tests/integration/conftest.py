"""Fixtures of this folder."""

from tests.homes import backup_file, full_home, scratch
from tests.queueing import queue, queue_url
from tests.workers import start

__all__ = ["backup_file", "full_home", "queue", "queue_url", "scratch", "start"]
