"""Public shapes of log entries."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fleek.core.log_levels import LogLevel
from fleek.logs.repository import EntryRow

_NEVER_SHOWN = frozenset({"exception"})
"""Tracebacks are for operators: they are in the log of the process, and in the database."""

_FINISHED: dict[str, Any] = {
    "id": 4715,
    "at": "2026-11-20T12:00:01.204Z",
    "level": "warning",
    "event": "attempt_finished",
    "attempt": 1,
    "process": "laptop-4711-5f3a9c",
    "request_id": None,
    "data": {
        "model": "demo",
        "owner": "local",
        "status": "in_queue",
        "outcome": "retry_scheduled",
        "code": "throttled",
        "error": "The provider asks to slow down",
        "retry_in": 2.5,
        "seconds": 1.2,
    },
}
ENTRY_EXAMPLES: list[Any] = [
    _FINISHED
    | {
        "id": 4713,
        "at": "2026-11-20T12:00:00.011Z",
        "level": "info",
        "event": "attempt_started",
        "data": {"model": "demo", "owner": "local", "failures": 0, "open_orders": 0},
    },
    _FINISHED,
]


class LogEntryOut(BaseModel):
    """One record of a process about a job."""

    model_config = ConfigDict(title="LogEntry", json_schema_extra={"examples": ENTRY_EXAMPLES})

    id: int = Field(description="Pass the last one as `after` to read on")
    at: datetime = Field(description="By the clock of the process that wrote it")
    level: LogLevel
    event: str = Field(description="A constant name")
    attempt: int | None = Field(description="The number of the attempt, if it is about one")
    process: str = Field(description="Which process wrote it")
    request_id: str | None = Field(description="The request during which it was written, if any")
    data: dict[str, Any] = Field(description="Its facts, without secrets")

    @classmethod
    def from_row(cls, row: EntryRow) -> LogEntryOut:
        """The public shape of an entry."""
        return cls(
            id=row.id,
            at=row.at,
            level=LogLevel(row.level),
            event=row.event,
            attempt=row.attempt,
            process=row.process,
            request_id=row.request_id,
            data={name: value for name, value in row.data.items() if name not in _NEVER_SHOWN},
        )


class LogPage(BaseModel):
    """A page of log entries, in the order in which they were stored: oldest first."""

    items: list[LogEntryOut]
    next_after: int | None = Field(description="Pass as `after` for the next page; null: no more yet")
