"""Logging as a process of the product has it, for one test."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import structlog

from fleek.observability.logs import configure_logging
from fleek.observability.redaction import Redactor


class Written(io.StringIO):
    """What was logged."""

    def events(self) -> list[dict[str, Any]]:
        """Records that were written as JSON."""
        return [json.loads(line) for line in self.getvalue().splitlines()]


@contextmanager
def logging_configured(
    level: str = "info",
    log_format: Literal["auto", "json", "pretty"] = "json",
    secrets: Iterable[str] = (),
) -> Iterator[Written]:
    """Configure logging, and undo it: other tests capture what is logged by other means."""
    root = logging.getLogger()
    handlers, threshold = root.handlers[:], root.level
    configure_logging(level, log_format, Redactor(secrets))
    # Loggers of modules must not remember a configuration that ends with the test.
    structlog.configure(cache_logger_on_first_use=False)
    written = Written()
    [handler] = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(written)
    try:
        yield written
    finally:
        root.handlers[:] = handlers
        root.setLevel(threshold)
        structlog.contextvars.clear_contextvars()
        structlog.reset_defaults()
