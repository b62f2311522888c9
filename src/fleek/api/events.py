"""A job's history as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

First what happened, from the rows, then what happens. An event's id is its sequence, so a client that
lost its connection continues where it was. No database connection is held between two readings.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi.sse import format_sse_event
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Receive, Scope, Send

from fleek.api import examples
from fleek.api.answers import ClosingStream, to_json
from fleek.api.deps import Call
from fleek.core.errors import NotFound, Unavailable
from fleek.core.events import STATUS_AFTER, TERMINAL_EVENTS, EventKind
from fleek.core.job import Status
from fleek.jobs.repository import EventRow
from fleek.jobs.waiting import Change, Watch

_RECONNECT_AFTER_MS = 2000
_FROZEN_READER = 30.0
"""Seconds beyond its age that a stream may take, when its client does not read."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a stream waits for what; in seconds."""

    ping_interval: float = 15
    """Silence after which a comment says that the stream still lives."""
    max_age: float = 15 * 60
    """The stream ends then, and its client continues with Last-Event-ID."""
    database_pause: float = 2
    """Until a database is asked again that did not answer."""


PACE = Pace()


class JobEvent(BaseModel):
    """The data of one event."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.EVENT]})

    job_id: UUID
    sequence: int = Field(description="1 for the job's first event; also the event's id")
    kind: EventKind = Field(description="Also the event's name")
    status: Status = Field(description="The job's status after it")
    at: datetime
    data: dict[str, Any]


class EventStream(ClosingStream):
    """An answer that ends with its client, and at the latest soon after its own age."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[bytes]) -> None:
        # Without the second header nginx would collect events before it passes them on.
        super().__init__(content, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream; also a client that does not read, and so stops the stream, holds it no longer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PACE.max_age + _FROZEN_READER):
                await super().__call__(scope, receive, send)


def has_ended(rows: Sequence[EventRow]) -> bool:
    """Whether the last of these events is one after which nothing follows, unless a client retries."""
    return bool(rows) and rows[-1].kind in TERMINAL_EVENTS


async def stream(call: Call, job_id: UUID, after: int, pace: Pace = PACE) -> AsyncGenerator[bytes]:
    """The events behind the sequence `after`, as they are sent, until the job has ended."""
    clock = asyncio.get_running_loop().time
    ends_at = clock() + pace.max_age
    yield format_sse_event(retry=_RECONNECT_AFTER_MS)
    async with call.context.waiters.watch(job_id) as watch:
        told = _Told(job_id, after)
        noted = Change.MOVED
        while clock() < ends_at:
            try:
                rows = await _read(call, told, noted)
            except Unavailable:
                await watch.changed(pace.database_pause)
                continue
            except NotFound:
                return  # It was deleted meanwhile.
            for message in told.messages(rows, watch):
                yield message
            if has_ended(rows) or call.context.waiters.is_stopping:
                return  # At a stop the client continues elsewhere, with Last-Event-ID.
            noted = await watch.changed(pace.ping_interval, at_least=Change.PROGRESS)
            if noted is Change.NOTHING:
                yield format_sse_event(comment="ping")


async def _read(call: Call, told: _Told, noted: Change) -> Sequence[EventRow]:
    """New rows; none, without asking, where nothing but the progress has changed."""
    if noted is not Change.MOVED:
        return []
    return await call.context.jobs.events(call.owner, told.job_id, told.sequence)


class _Told:
    """What a stream's client knows already."""

    def __init__(self, job_id: UUID, sequence: int) -> None:
        self.job_id = job_id
        self.sequence = sequence
        self._progress: float | None = None

    def messages(self, rows: Sequence[EventRow], watch: Watch) -> list[bytes]:
        """The rows as events, and the progress where it has grown since the last one."""
        messages = [self._to_event(row) for row in rows]
        if rows:
            # An event begins or ends an attempt: what was announced before it counts no more.
            self.sequence, self._progress, watch.progress = rows[-1].sequence, None, None
        elif watch.progress is not None and watch.progress > (self._progress or 0):
            self._progress = watch.progress
            messages.append(format_sse_event(event="progress", data_str=f'{{"progress":{watch.progress}}}'))
        return messages

    def _to_event(self, row: EventRow) -> bytes:
        event = JobEvent(
            job_id=self.job_id,
            sequence=row.sequence,
            kind=row.kind,
            status=STATUS_AFTER[row.kind],
            at=row.at,
            data=row.data,
        )
        return format_sse_event(event=row.kind, data_str=to_json(event).decode(), id=str(row.sequence))
