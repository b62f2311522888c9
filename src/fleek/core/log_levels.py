"""How severe a log record is."""

from __future__ import annotations

from enum import StrEnum


class LogLevel(StrEnum):
    """The least severe first."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"

    @property
    def and_worse(self) -> tuple[LogLevel, ...]:
        """This level and those above it."""
        levels = tuple(LogLevel)
        return levels[levels.index(self) :]
