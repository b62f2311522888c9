"""Structured logs: constant event names, facts in fields; JSON in production, pretty on a terminal.

Records go through the standard library's logging, so that those of libraries come out in the same
form, and so that each handler has its own threshold: standard error has the configured level, and
whoever keeps records sees what matters about an attempt whatever that level is.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import structlog

from fleek.observability.records import LIBRARY_MESSAGE, Event, Preparation, Record, to_record
from fleek.observability.redaction import Redactor

_QUIET = ("celery", "kombu", "amqp", "uvicorn.access", "asyncio", "httpx2", "httpcore2")
_BROKER_TROUBLE = "celery.worker.consumer.consumer"
_NEVER_KEPT = ("fleek.logs", "sqlalchemy", "asyncpg")
"""Loggers of what keeping records itself uses: its troubles must not feed it."""
_INDENT = "    "


def configure_logging(
    level: str,
    log_format: Literal["auto", "json", "pretty"] = "auto",
    redactor: Redactor | None = None,
) -> None:
    """Send everything, the standard library's records too, to stderr in one form."""
    pretty = log_format == "pretty" or (log_format == "auto" and sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(threshold)
    handler.setFormatter(_Formatter(Preparation(redactor or Redactor()), _Pretty() if pretty else _to_line))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Whoever keeps records wants those of attempts too: handlers have their own thresholds.
    root.setLevel(min(threshold, logging.INFO))
    logging.getLogger(_BROKER_TROUBLE).addFilter(_without_traceback)
    for name in _QUIET if threshold > logging.DEBUG else ():
        logging.getLogger(name).setLevel(max(logging.WARNING, threshold))


@contextmanager
def kept_records(keep: Callable[[Record], None], redactor: Redactor) -> Iterator[None]:
    """Hand records that are worth keeping to `keep`, until the block ends.

    Those are warnings, errors, and everything from info on that belongs to an attempt. `keep` is
    called on any thread; it must neither block nor raise.
    """
    handler = _Keeper(keep, Preparation(redactor))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


class _Keeper(logging.Handler):
    """Picks the records that are kept."""

    def __init__(self, keep: Callable[[Record], None], preparation: Preparation) -> None:
        super().__init__(logging.INFO)
        self._keep = keep
        self._preparation = preparation

    def createLock(self) -> None:  # noqa: N802  the standard library's name
        """None is needed, and one would be held while a record is made ready."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one over, if it is worth it; logging must not break what it tells about."""
        with suppress(Exception):
            if _is_kept(record):
                self._keep(to_record(self._preparation.event(record)))


def _is_kept(record: logging.LogRecord) -> bool:
    """Told before anything is made of the record: most are not."""
    if record.levelno < logging.WARNING and not _is_of_attempt(record):
        return False
    return not any(record.name == name or record.name.startswith(f"{name}.") for name in _NEVER_KEPT)


def _is_of_attempt(record: logging.LogRecord) -> bool:
    """Whether it is one of ours, written while an attempt was worked on: libraries' talk is not kept."""
    return isinstance(record.msg, dict) and "attempt" in structlog.contextvars.get_contextvars()


class _Formatter(logging.Formatter):
    """Renders events."""

    def __init__(self, preparation: Preparation, render: Callable[[Event], str]) -> None:
        super().__init__()
        self._preparation = preparation
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        """One record, as text."""
        return self._render(self._preparation.event(record))


def _to_line(event: Event) -> str:
    """One line of JSON; whatever is not ASCII is escaped."""
    return json.dumps(event, default=str)


class _Pretty:
    """Lines for people. A traceback is indented: no line of it can pass for a record."""

    def __init__(self) -> None:
        colours = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        self._render = structlog.dev.ConsoleRenderer(
            colors=colours, exception_formatter=structlog.dev.plain_traceback
        )

    def __call__(self, event: Event) -> str:
        shown = dict(event)
        if shown["event"] == LIBRARY_MESSAGE:
            shown["event"] = shown.pop("message")
        if "exception" in shown:
            shown["exception"] = _INDENT + shown["exception"].replace("\n", f"\n{_INDENT}")
        return str(self._render(None, "", shown))


def _without_traceback(record: logging.LogRecord) -> bool:
    """A broker that is away, or refuses, is one line each time: where Celery noticed it helps nobody."""
    record.exc_info = None
    return True
