"""Structured logs: constant event names, facts in fields; JSON in production, pretty on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog

_QUIET = ("celery", "kombu", "amqp", "uvicorn.access", "asyncio", "httpx2", "httpcore2")
_BROKER_TROUBLE = "celery.worker.consumer.consumer"


def configure_logging(level: str, log_format: Literal["auto", "json", "pretty"] = "auto") -> None:
    """Send everything, the standard library's records too, to stderr in one form."""
    pretty = log_format == "pretty" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    render: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if pretty
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger(_BROKER_TROUBLE).addFilter(_without_traceback)
    for name in _QUIET if root.level > logging.DEBUG else ():
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _without_traceback(record: logging.LogRecord) -> bool:
    """A broker that is away, or refuses, is one line each time: where Celery noticed it helps nobody."""
    record.exc_info = None
    return True
