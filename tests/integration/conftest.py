"""Fixtures of this folder."""

from tests.queueing import queue, queue_url
from tests.workers import start

__all__ = ["queue", "queue_url", "start"]
