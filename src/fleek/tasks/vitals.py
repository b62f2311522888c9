"""What a worker process answers when it is asked how it is; from memory, without asking anybody else."""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

from fleek.core.errors import DatabaseUnavailable, SchemaOutdated
from fleek.db.schema import Schema, SchemaState

_JITTER = 1.2
"""A wait between two looks is at most this much longer than its interval."""
_LONGEST_LOOK = 120.0
"""Seconds. A look at several queues of a slow database takes long; one that takes longer has no end."""


class Looker(Protocol):
    """What is to be known of the dispatcher."""

    is_answered: bool

    @property
    def is_stopping(self) -> bool:
        """Whether it claims nothing any more."""
        ...

    @property
    def silence(self) -> float:
        """Seconds since it began to look at the queue."""
        ...


class Renewer(Protocol):
    """What is to be known of the lease keeper."""

    is_answered: bool


class Vitals:
    """Two verdicts: None where all is well, else one line that says why not."""

    def __init__(self, schema: Schema, dispatcher: Looker, keeper: Renewer, interval: timedelta) -> None:
        """`interval`: how long the dispatcher waits between two looks when nothing calls it."""
        self._schema = schema
        self._dispatcher = dispatcher
        self._keeper = keeper
        self._longest_silence = interval.total_seconds() * _JITTER + _LONGEST_LOOK

    def why_not_live(self) -> str | None:
        """A process that should be started anew. A database that is away is no reason."""
        silence = self._dispatcher.silence
        if silence <= self._longest_silence:
            return None
        return f"the last look at the queue began {silence:.0f} s ago"

    def why_not_ready(self) -> str | None:
        """A process that claims no jobs at the moment."""
        if self._dispatcher.is_stopping:
            return "it stops, and claims nothing more"
        if self._schema.state is SchemaState.UNKNOWN:
            return DatabaseUnavailable().message
        if not self._schema.is_usable:
            return SchemaOutdated().message
        if not (self._dispatcher.is_answered and self._keeper.is_answered):
            return DatabaseUnavailable().message
        return None
