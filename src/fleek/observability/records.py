"""A log record as an event: its facts by name, safe to print and to store.

One form for our own records and for those of libraries: secrets taken out, control characters
escaped, everything bounded. It is made once a record, whoever asks for it.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from uuid import UUID

import structlog

from fleek.observability.redaction import Redactor

Event = dict[str, Any]

LIBRARY_MESSAGE = "library_message"
"""The event of records that libraries write; their own words are the field `message`."""

MAX_TEXT = 2_000
"""Characters of one field; what is cut away is counted."""
MAX_TRACEBACK = 8_000
"""Characters of a traceback: its beginning, and its end, which says what happened."""
MAX_FIELDS = 32
"""Fields of one record."""
_MAX_RAW = 40_000
"""Characters that are searched for secrets; nothing behind them is ever shown."""
_MAX_FRAMES = 40
_MAX_NAMES = 1_000
_MAX_ATTEMPT = 2**31 - 1
_CACHED = "fleek_event"

_PRIVATE: ContextVar[str] = ContextVar("private_text", default="")
_MIN_PRIVATE = 8
"""Characters: shorter texts are part of everything."""
_HIDDEN = "[prompt]"

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True, slots=True)
class Record:
    """An event that is to be kept, as the columns of a row; `data` holds what has no column."""

    at: datetime
    level: str
    event: str
    job_id: UUID | None
    attempt: int | None
    request_id: str | None
    data: Event


def hide_text(text: str) -> None:
    """Keep `text` out of the records of this context from here on, wherever it is repeated."""
    _PRIVATE.set(text if len(text) >= _MIN_PRIVATE else "")


@contextmanager
def private_text(text: str) -> Iterator[None]:
    """Keep `text`, such as a prompt, out of the records of this context until the block ends."""
    before = _PRIVATE.get()
    hide_text(text)
    try:
        yield
    finally:
        _PRIVATE.set(before)


class Preparation:
    """Turns records of the standard library's logging, structlog's among them, into events."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._names: dict[str, str] = {}

    def event(self, record: logging.LogRecord) -> Event:
        """The event of a record: made at the first call, and the same object ever after."""
        made: Event | None = record.__dict__.get(_CACHED)
        if made is None:
            made = record.__dict__[_CACHED] = self._make(record)
        return made

    def _make(self, record: logging.LogRecord) -> Event:
        facts, error = _read(record)
        event: Event = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
            "level": _level_name(record.levelno),
            "event": self._clean("event", facts.pop("event")),
        }
        for name, value in islice(facts.items(), MAX_FIELDS):
            event[self._name(str(name))] = self._clean(str(name), value)
        if error is not None:
            event["error_type"] = type(error).__name__
            event["exception"] = self._traceback(error)
        return event

    def _name(self, name: str) -> str:
        """A field's name as it is shown. A program has few of them; from elsewhere there may come many."""
        shown = self._names.get(name)
        if shown is None:
            shown = self._clean("", name)
            if len(self._names) < _MAX_NAMES:
                self._names[name] = shown
        return shown

    def _clean(self, name: str, value: object) -> Any:  # noqa: ANN401  any JSON value
        """A field's value: secrets out, control characters escaped, cut to its bound."""
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, str):
            value = _without_private(value)[:_MAX_RAW]
        shown = self._redactor.field(name, value)
        return _cut(_printable(shown), MAX_TEXT) if isinstance(shown, str) else _plain(shown)

    def _traceback(self, error: BaseException) -> str:
        try:
            lines = traceback.TracebackException.from_exception(error, limit=_MAX_FRAMES).format()
            text = "".join(lines).rstrip("\n")
        except Exception:  # noqa: BLE001  an exception may fail at showing itself; a log record may not
            text = type(error).__name__
        text = self._redactor.text(_cut_middle(_without_private(text), _MAX_RAW))
        return _cut_middle("\n".join(map(_printable, text.split("\n"))), MAX_TRACEBACK)


def to_record(event: Event) -> Record:
    """The columns of an event that is to be kept."""
    data = dict(event)
    job_id, attempt = _id_or_none(data.get("job_id")), data.get("attempt")
    is_number = isinstance(attempt, int) and 0 <= attempt <= _MAX_ATTEMPT
    request_id = data.pop("request_id", None)
    if job_id is not None:
        del data["job_id"]
    if is_number:
        del data["attempt"]
    return Record(
        at=datetime.fromisoformat(data.pop("timestamp")),
        level=data.pop("level"),
        event=str(data.pop("event")),
        job_id=job_id,
        attempt=attempt if is_number else None,
        request_id=None if request_id is None else str(request_id),
        data=data,
    )


def _read(record: logging.LogRecord) -> tuple[Event, BaseException | None]:
    """The facts of a record, those that are bound in its context first, and its exception."""
    facts = structlog.contextvars.get_contextvars()
    if isinstance(record.msg, dict):
        facts |= record.msg
        facts.setdefault("event", "")
        return facts, _exception_of(facts.pop("exc_info", None))
    facts |= {"event": LIBRARY_MESSAGE, "message": _message(record), "logger": record.name}
    return facts, _exception_of(record.exc_info)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  arguments that do not fit their format are a library's mistake
        return str(record.msg)


def _exception_of(given: object) -> BaseException | None:
    """What `exc_info` stands for: an exception, what `sys.exc_info` gives, or true for the current one."""
    if isinstance(given, tuple):
        given = given[1]
    elif given is True:
        given = sys.exception()
    return given if isinstance(given, BaseException) else None


def _without_private(text: str) -> str:
    """The text without the private one, as it is and as Python and JSON quote it."""
    private = _PRIVATE.get()
    if not private or len(text) < len(private):
        return text
    for form in dict.fromkeys((private, repr(private)[1:-1], json.dumps(private)[1:-1])):
        text = text.replace(form, _HIDDEN)
    return text


def _level_name(number: int) -> str:
    """The nearest of the five usual levels that is not above: libraries may have their own."""
    for level in (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO):
        if number >= level:
            return logging.getLevelName(level).lower()
    return "debug"


def _id_or_none(value: object) -> UUID | None:
    try:
        return UUID(str(value)) if value is not None else None
    except ValueError:
        return None


def _printable(text: str) -> str:
    """The text with control characters, line breaks and marks of direction as escapes."""
    return text if text.isprintable() else _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}[... {len(text) - length} more]"


def _cut_middle(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    head = length // 4
    return f"{text[:head]}\n[... {len(text) - length} left out]\n{text[head - length :]}"


def _plain(value: object) -> Any:  # noqa: ANN401  any JSON value
    """A number, a time or what has parts, as JSON has it; as a text where that is long."""
    text = _without_private(json.dumps(value, default=str))
    return json.loads(text, parse_constant=str) if len(text) <= MAX_TEXT else _cut(text, MAX_TEXT)
