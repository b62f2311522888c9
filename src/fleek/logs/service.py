"""What clients can ask about the log of a job."""

from __future__ import annotations

from uuid import UUID

from fleek.core.errors import NotFound
from fleek.db.session import Database
from fleek.logs import repository
from fleek.logs.repository import EntryFilter
from fleek.logs.schemas import LogEntryOut, LogPage


class LogService:
    """Reads log entries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self, owner: str, job_id: UUID, wanted: EntryFilter, limit: int) -> LogPage:
        """A page of a job's entries; raises NotFound where the owner has no such job."""
        rows = await repository.list_entries(self._database, owner, job_id, wanted, limit + 1)
        if rows is None:
            raise NotFound("job")
        items = [LogEntryOut.from_row(row) for row in rows[:limit]]
        return LogPage(items=items, next_after=items[-1].id if len(rows) > limit else None)
