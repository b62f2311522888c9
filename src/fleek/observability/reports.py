"""What of a log record is reported to Sentry, and how: facts about our code, never what a client sent.

Everything that leaves is chosen by name. Messages of exceptions that are not ours are withheld, since a
library may quote what it was given: the log has them, under the same request and job.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import structlog

from fleek.core.errors import ConfigurationError, Unavailable

Event = dict[str, Any]
Facts = dict[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

TAGS = (
    *("request_id", "job_id", "attempt", "model", "provider", "queue", "worker"),
    *("code", "caretaker", "status", "reason", "method"),
)
"""Fields of a record that are sent; prompts, inputs and paths are none of them."""
WITHHELD = "[withheld: it may quote what a client sent; the log has it]"
_OURS = "fleek."
_QUOTING = frozenset({"ProviderError"})
"""Errors of ours that carry somebody else's words."""
_ABOUT_CODE = frozenset(
    {
        *("AttributeError", "NameError", "UnboundLocalError", "ImportError", "ModuleNotFoundError"),
        *("ZeroDivisionError", "RecursionError", "MemoryError", "NotImplementedError"),
    }
)
"""Python's own errors whose words are about code."""
_EXPECTED = (Unavailable, ConfigurationError)
"""Their cause is outside: the log and the probes tell of them, every second while it lasts."""
_NOT_OURS = ("sentry_sdk", "urllib3")
"""Loggers of the reporting itself."""
_MOST_CRUMBS = 100
_CRUMBS_OF_EVENT = 20
_SPACING = 60.0
"""Seconds between two reports of the same error; those in between are counted."""
_MOST_KINDS = 200
_MOST_A_MINUTE = 30


@dataclass(frozen=True, slots=True)
class Report:
    """One thing to send."""

    name: str
    level: str
    logger: str
    facts: Facts
    error: ExcInfo | None
    crumbs: list[Event]
    suppressed: int
    """Reports of the same error that were not sent since the last one."""


class Limiter:
    """Lets through one report of a kind a minute, and a bounded number of all kinds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._sent: deque[float] = deque(maxlen=_MOST_A_MINUTE)

    def admit(self, kind: str) -> int | None:
        """How many of the kind were held back since the last one; None: hold back this one too."""
        now = self._clock()
        since, held = self._kinds.pop(kind, (now - _SPACING, 0))
        is_crowded = len(self._sent) == _MOST_A_MINUTE and now - self._sent[0] < _SPACING
        if now - since < _SPACING or is_crowded:
            self._keep(kind, (since, held + 1))
            return None
        self._sent.append(now)
        self._keep(kind, (now, 0))
        return held

    def _keep(self, kind: str, state: tuple[float, int]) -> None:
        self._kinds[kind] = state
        while len(self._kinds) > _MOST_KINDS:
            self._kinds.popitem(last=False)


class Reporter(logging.Handler):
    """Sees every record from info on, and hands on what is to be reported. Never raises."""

    def __init__(self, send: Callable[[Report], None], limiter: Limiter | None = None) -> None:
        super().__init__(logging.INFO)
        self._send = send
        self._limiter = limiter or Limiter()
        self._crumbs: deque[tuple[Facts, Event]] = deque(maxlen=_MOST_CRUMBS)

    def emit(self, record: logging.LogRecord) -> None:
        """Report an error, or keep the record for the next one's history."""
        if record.name.startswith(_NOT_OURS):
            return
        try:
            self._take(record)
        except Exception:  # noqa: BLE001  what watches over errors must not make new ones
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the library's name
        """Silence: the record itself was written by another handler."""

    def _take(self, record: logging.LogRecord) -> None:
        facts = _facts_of(record)
        name, error = str(facts.get("event", "")), _error_of(record, facts)
        if _is_reportable(record.levelno, facts, error):
            self._report(record, name, facts, error)
        if isinstance(record.msg, dict):
            self._crumbs.append((facts, _to_crumb(record, name, facts)))

    def _report(self, record: logging.LogRecord, name: str, facts: Facts, error: ExcInfo | None) -> None:
        kind = f"{name} {error[0].__qualname__}" if error else name
        held = self._limiter.admit(kind)
        if held is None:
            return
        level = "error" if record.levelno >= logging.ERROR else "warning"
        self._send(Report(name, level, record.name, facts, error, self._history(facts), held))

    def _history(self, facts: Facts) -> list[Event]:
        """The last records of the same job or request, and those that belong to none."""
        related = [crumb for others, crumb in self._crumbs if _belongs(others, facts)]
        return related[-_CRUMBS_OF_EVENT:]


def tags_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """The fields that are sent."""
    return {name: str(facts[name])[:200] for name in TAGS if facts.get(name) is not None}


def without_quotes(event: Event) -> Event:
    """Take the messages out of exceptions that may quote what they were given."""
    for value in event.get("exception", {}).get("values", ()):
        if not _is_about_code(str(value.get("module") or ""), str(value.get("type"))):
            value["value"] = WITHHELD
    return event


def _is_about_code(module: str, kind: str) -> bool:
    if module.startswith(_OURS):
        return kind not in _QUOTING
    return not module and kind in _ABOUT_CODE


def _is_reportable(level: int, facts: Facts, error: ExcInfo | None) -> bool:
    """Errors that nobody expected, and orders that may have been paid for nothing."""
    if error is not None:
        expected = isinstance(error[1], _EXPECTED) or not isinstance(error[1], Exception)
        return level >= logging.ERROR and not expected
    return facts.get("event") == "attempt_ended" and facts.get("reason") == "ambiguous_submission"


def _facts_of(record: logging.LogRecord) -> Facts:
    if isinstance(record.msg, dict):
        return structlog.contextvars.get_contextvars() | record.msg
    return structlog.contextvars.get_contextvars() | {"event": f"{record.name} record"}


def _error_of(record: logging.LogRecord, facts: Facts) -> ExcInfo | None:
    given = facts.pop("exc_info", None) or record.exc_info
    if given is True:
        given = sys.exc_info()
    if isinstance(given, BaseException):
        return type(given), given, given.__traceback__
    if isinstance(given, tuple) and given[0] is not None and given[1] is not None:
        return given[0], given[1], given[2]
    return None


def _to_crumb(record: logging.LogRecord, name: str, facts: Facts) -> Event:
    return {
        "timestamp": record.created,
        "level": record.levelname.lower(),
        "category": record.name,
        "message": name,
        "data": tags_of(facts),
    }


def _belongs(others: Facts, facts: Facts) -> bool:
    return all(others.get(name) in {None, facts.get(name)} for name in ("job_id", "request_id"))
