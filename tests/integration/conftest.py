"""Fixtures of this folder."""

from tests.queueing import queue, queue_url

__all__ = ["queue", "queue_url"]
