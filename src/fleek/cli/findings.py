"""What a check of the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import asyncpg
from sqlalchemy.engine import make_url

from fleek.settings import Settings

CHECK_SECONDS = 5.0


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"
    """Something that it needs failed already."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `remedy` is set unless all is well."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str | None = None


def ok(detail: str) -> Finding:
    """All is well; `examine` fills in the name."""
    return Finding("", Verdict.OK, detail)


def warning(detail: str, remedy: str) -> Finding:
    """Works, but deserves a look."""
    return Finding("", Verdict.WARNING, detail, remedy)


def failed(detail: str, remedy: str) -> Finding:
    """Does not work."""
    return Finding("", Verdict.FAILED, detail, remedy)


async def connect(settings: Settings) -> Any:  # noqa: ANN401  asyncpg's connection is untyped without its stubs
    """A connection to the configured database; close it."""
    url = make_url(settings.resolved_database_url).set(drivername="postgresql")
    return await asyncpg.connect(
        url.render_as_string(hide_password=False),
        timeout=CHECK_SECONDS,
        # As for every other process: each statement is driven by an index, however large the tables are.
        server_settings={"application_name": "fleek doctor", "enable_seqscan": "off", "jit": "off"},
    )
