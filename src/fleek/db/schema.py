"""Whether a database has a schema that this release can work with, and whether it takes writes.

A newer schema is one: a release's migrations leave the code of the release before it running, so that
processes can be replaced one by one. An older one is not, nor is an empty database.
"""

from __future__ import annotations

import asyncio
import logging
from enum import StrEnum
from typing import Any

import asyncpg
import structlog
from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError

from fleek.core.errors import ConfigurationError, DatabaseReadOnly, DatabaseUnavailable, SchemaOutdated
from fleek.db.revisions import Revisions
from fleek.db.session import Database

_log = structlog.get_logger(__name__)

_EXISTS = text("SELECT to_regclass('alembic_version') IS NOT NULL")
_REVISION = text("SELECT version_num FROM alembic_version")
# A standby refuses writes, and so does a primary that was told to.
_TAKES_WRITES = text("SELECT NOT pg_is_in_recovery() AND NOT current_setting('transaction_read_only')::bool")
_START_SECONDS = 5.0
"""Seconds that a start waits for the answer."""
_INTERVAL = 1.0
"""Seconds between two looks at a schema that cannot be worked with yet."""


class SchemaState(StrEnum):
    """What became known of the schema."""

    UNKNOWN = "unknown"
    """The database has not answered yet."""
    EMPTY = "empty"
    OLDER = "older"
    CURRENT = "current"
    NEWER = "newer"
    """Its revision is none of this release's: a later release made it."""


_USABLE = frozenset({SchemaState.CURRENT, SchemaState.NEWER})
_TOO_OLD = frozenset({SchemaState.EMPTY, SchemaState.OLDER})


class Schema:
    """What a process knows of the schema of its database."""

    def __init__(self, database: Database, revisions: Revisions, *, may_wait: bool = False) -> None:
        """`may_wait`: somebody may be bringing the schema forward at this moment."""
        self._database = database
        self._revisions = revisions
        self._may_wait = may_wait
        self.state = SchemaState.UNKNOWN
        """As of the last look that was answered."""
        self.revision: str | None = None
        """Likewise."""

    @property
    def head(self) -> str | None:
        """The revision that this release's migrations lead to."""
        return self._revisions.head

    @property
    def is_usable(self) -> bool:
        """Whether this release can work with it."""
        return self.state in _USABLE

    def require(self) -> None:
        """Raise SchemaOutdated where it is known that nothing can work yet."""
        if self.state in _TOO_OLD:
            raise SchemaOutdated

    async def look(self) -> SchemaState:
        """Ask the database. Raises DatabaseUnavailable, or ConfigurationError where it refuses us."""
        (exists,) = await self._ask(_EXISTS)
        row = await self._ask(_REVISION) if exists else None
        self.revision = None if row is None else str(row[0])
        before, self.state = self.state, self._judge(self.revision)
        if before is not self.state:
            self._tell()
        return self.state

    async def check(self) -> None:
        """The look at a process's start: raises ConfigurationError for a schema that is too old.

        Not where it may be waited for. A database that is away says nothing about its schema.
        """
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self.look()
        except (DatabaseUnavailable, TimeoutError):
            level = logging.INFO if self._may_wait else logging.WARNING
            _log.log(level, "schema_not_checked", reason="the database does not answer")
            return
        if self.state in _TOO_OLD and not self._may_wait:
            raise ConfigurationError(self._remedy())

    async def until_usable(self) -> None:
        """Look until this release can work with it; at once where that is known already."""
        while not self.is_usable:
            await asyncio.sleep(_INTERVAL)
            try:
                await self.look()
            except DatabaseUnavailable:
                continue
            except ConfigurationError as error:
                _log.warning("schema_not_checked", reason=error.message)

    async def require_writes(self) -> None:
        """Raise unless the database takes writes: DatabaseUnavailable or DatabaseReadOnly; one statement."""
        (takes_writes,) = await self._ask(_TAKES_WRITES)
        if not takes_writes:
            raise DatabaseReadOnly

    async def require_now(self) -> None:
        """Look, and raise SchemaOutdated where nothing can work."""
        await self.look()
        self.require()

    async def probe(self) -> None:
        """Raise unless jobs can be stored: one statement, once the schema was found right."""
        await self.require_writes()
        if not self.is_usable:
            await self.require_now()

    async def _ask(self, statement: TextClause) -> Any:  # noqa: ANN401  any row
        try:
            return await self._database.fetch_one(statement)
        except (asyncpg.PostgresError, DBAPIError) as error:
            # A wrong password or database, or a role without the right to look; the message says which.
            said = str(getattr(error, "orig", error)).rpartition(">: ")[2]
            message = f"FLEEK_DATABASE_URL: the database refuses us: {said}"
            raise ConfigurationError(message) from error

    def _judge(self, revision: str | None) -> SchemaState:
        if revision is None:
            return SchemaState.EMPTY
        if revision == self._revisions.head:
            return SchemaState.CURRENT
        return SchemaState.OLDER if revision in self._revisions.known else SchemaState.NEWER

    def _tell(self) -> None:
        facts = {"revision": self.revision, "head": self.head}
        if self.state in _TOO_OLD and self._may_wait:
            _log.info("schema_awaited", **facts)
        elif self.state in _TOO_OLD:
            _log.warning("schema_outdated", remedy="fleek db upgrade", **facts)
        elif self.state is SchemaState.NEWER:
            _log.info("schema_newer", **facts)

    def _remedy(self) -> str:
        found = "is empty" if self.revision is None else f"has the schema {self.revision}"
        return (
            f"FLEEK_DATABASE_URL: the database {found}, and this release needs {self.head}: run "
            "`fleek db upgrade`, or set FLEEK_WAIT_FOR_SCHEMA=true where somebody else does"
        )
