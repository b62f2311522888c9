"""The connection pool of a process, and how its troubles look from above.

Hot paths are single statements on an AUTOCOMMIT connection: no BEGIN and no COMMIT travel. What
needs several statements uses `begin`. Nothing holds a connection while it waits for anything else.
"""

from __future__ import annotations

import asyncio
import errno
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import CursorResult, event
from sqlalchemy.exc import (
    DBAPIError,
    InvalidatePoolError,
    SQLAlchemyError,
    TimeoutError as PoolTimeoutError,
)
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from fleek.core.errors import DatabaseUnavailable
from fleek.db.address import split
from fleek.db.vigil import Vigil

_PING_AFTER_IDLE = 1.0
"""Seconds. A connection that worked this recently is trusted; an older one is pinged first.

`pool_pre_ping` would ping before every statement and so double the round trips of the hot paths.
"""
_PING_TIMEOUT = 2.0
"""Seconds. After a fail-over that nobody announced, idle connections lead to a machine that says nothing."""
_FAREWELL_SECONDS = 2.0
"""How long all connections of a pool may take to be closed in order."""

_UNAVAILABLE = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,  # shutting down, crash recovery, statement timeout
    asyncpg.InsufficientResourcesError,  # too many connections, disk full, out of memory
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
)
_UNREACHABLE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH})
_ROLLED_BACK = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_PAUSES_BEFORE_REPEATING = (0.02, 0.1, 0.3)
"""Seconds, before each repetition of what the server rolled back."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """Sizes, and time limits in seconds."""

    size: int = 20
    max_overflow: int = 10
    recycle: float = 3600
    pool_timeout: float = 2
    connect_timeout: float = 2
    statement_timeout: float = 10
    lock_timeout: float = 2
    idle_in_transaction_timeout: float = 15


def _server_settings(options: PoolOptions, application: str) -> dict[str, str]:
    milliseconds = {
        "statement_timeout": options.statement_timeout,
        "lock_timeout": options.lock_timeout,
        "idle_in_transaction_session_timeout": options.idle_in_transaction_timeout,
    }
    limits = {name: str(int(seconds * 1000)) for name, seconds in milliseconds.items()}
    return limits | {
        "application_name": application,
        "timezone": "UTC",
        "jit": "off",
        # Every statement here is driven by an index. A plan that was cached while a table was small
        # must not read all of it once it has a million rows (a claim took 12 ms instead of 2).
        "enable_seqscan": "off",
    }


class Database:
    """A pool of connections to one PostgreSQL, for one event loop."""

    def __init__(self, url: str, options: PoolOptions | None = None, *, application: str = "fleek") -> None:
        options = options or PoolOptions()
        address, parameters = split(url)
        connect_args = {
            **parameters,
            "timeout": options.connect_timeout,
            # A dead peer is noticed by this bound, a slow statement by the server's shorter one.
            "command_timeout": options.statement_timeout + 5,
            "server_settings": _server_settings(options, application),
        }
        self._engine = create_async_engine(
            address,
            pool_size=options.size,
            max_overflow=options.max_overflow,
            pool_recycle=options.recycle,
            pool_timeout=options.pool_timeout,
            connect_args=connect_args,
            # Prompts are parameters, and errors end in logs.
            hide_parameters=True,
        )
        self._outside = create_async_engine(address, poolclass=NullPool, connect_args=connect_args)
        self._patience = max(_PING_TIMEOUT, options.connect_timeout)
        self._vigil = Vigil(self._is_silent, self._note_silence)
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._lost_at = 0.0
        self._is_used = False
        event.listen(self._engine.sync_engine, "checkout", self._ping_if_idle)
        event.listen(self._engine.sync_engine, "checkout", self._begin_use)
        event.listen(self._engine.sync_engine, "close", self._drop_if_lost)
        event.listen(self._engine.sync_engine, "checkin", self._end_use)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """A connection on which every statement commits by itself."""
        with _translated():
            async with self._autocommit.connect() as connection:
                yield connection

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end of the block, rolled back when it raises."""
        with _translated():
            async with self._engine.begin() as connection:
                yield connection

    async def fetch_all(self, statement: Any, parameters: Mapping[str, Any] | None = None) -> list[Any]:  # noqa: ANN401  any executable
        """All rows of one statement, in one round trip."""
        return await self._execute(statement, parameters, lambda result: list(result.all()))

    async def fetch_one(self, statement: Any, parameters: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401  any executable, any row
        """The first row of one statement, or None, in one round trip."""
        return await self._execute(statement, parameters, lambda result: result.first())

    async def fetch_rowcount(self, statement: Any, parameters: Mapping[str, Any] | None = None) -> int:  # noqa: ANN401  any executable
        """Run one statement that returns no rows; how many rows it changed, in one round trip."""
        return await self._execute(statement, parameters, lambda result: int(result.rowcount))

    async def _execute(
        self,
        statement: Any,  # noqa: ANN401  any executable
        parameters: Mapping[str, Any] | None,
        read: Callable[[CursorResult[Any]], _T],
    ) -> _T:
        async def once() -> _T:
            async with self.connect() as connection:
                return read(await connection.execute(statement, parameters))

        return await repeated(once)

    async def aclose(self) -> None:
        """Close every connection.

        The pool says farewell on one after the other, and a server that is silent would let each of them
        wait for `command_timeout`: so it is asked first. It may answer, and the present connections lead
        nowhere all the same, as after a fail-over: so the farewells have a bound.
        """
        await self._vigil.aclose()
        if self._is_used and await self._is_silent():
            self._note_silence()
        try:
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self._engine.dispose()
        except TimeoutError:
            self._note_silence()
            await self._engine.dispose()
        await self._outside.dispose()

    def _ping_if_idle(self, connection: Any, record: Any, _proxy: Any) -> None:  # noqa: ANN401  SQLAlchemy's untyped hook
        last_used = record.info.get("last_used")
        if last_used is None or time.monotonic() - last_used < _PING_AFTER_IDLE:
            return
        try:
            connection.run_async(_ping)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            # What became of one connection became of the others: none of them is waited for in its turn.
            self._note_silence()
            raise InvalidatePoolError from error

    def _begin_use(self, _connection: Any, record: Any, _proxy: Any) -> None:  # noqa: ANN401  SQLAlchemy's untyped hook
        self._is_used = True
        driver = record.info["driver"] = record.driver_connection
        self._vigil.begin(driver)

    def _end_use(self, _connection: Any, record: Any) -> None:  # noqa: ANN401  SQLAlchemy's untyped hook
        record.info["last_used"] = time.monotonic()
        self._vigil.end(record.info.pop("driver", None))

    async def _is_silent(self) -> bool:
        """Whether not even a new connection gets an answer; a refusal is one."""
        try:
            async with asyncio.timeout(self._patience), self._outside.connect():
                return False
        except OSError as error:
            return isinstance(error, TimeoutError) or error.errno in _UNREACHABLE
        except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False

    def _note_silence(self) -> None:
        self._lost_at = time.monotonic()

    def _drop_if_lost(self, connection: Any, record: Any) -> None:  # noqa: ANN401  SQLAlchemy's untyped hook
        """Close without a farewell: a peer that is silent would not answer it, and take seconds for that."""
        if record.info.get("last_used", self._lost_at) < self._lost_at:
            connection.driver_connection.terminate()


async def _ping(connection: asyncpg.Connection) -> None:
    """One round trip; a peer that is silent for too long loses the connection.

    A time-out of the driver's own would first ask the silent peer to cancel the statement.
    """
    give_up = asyncio.get_running_loop().call_later(_PING_TIMEOUT, connection.terminate)
    try:
        await connection.execute("SELECT 1")
    finally:
        give_up.cancel()


class RolledBackError(DatabaseUnavailable):
    """The server undid what was asked, so that others could go on: nothing was done, and again is right."""


async def repeated(work: Callable[[], Awaitable[_T]]) -> _T:
    """Do what is one statement, or one whole transaction; again, a few times, where it was rolled back."""
    for pause in _PAUSES_BEFORE_REPEATING:
        try:
            return await work()
        except RolledBackError:
            # Spread: the two that met must not meet again.
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  jitter, no secret
    return await work()


class LockTimeoutError(DatabaseUnavailable):
    """A row that the statement needs stayed locked for longer than `lock_timeout`."""


@contextmanager
def _translated() -> Iterator[None]:
    """Turns every way in which PostgreSQL can be away into DatabaseUnavailable."""
    try:
        yield
    except DBAPIError as error:
        cause = getattr(error.orig, "__cause__", None)
        if isinstance(cause, asyncpg.LockNotAvailableError):
            raise LockTimeoutError from error
        if isinstance(cause, _ROLLED_BACK):
            raise RolledBackError from error
        if error.connection_invalidated or isinstance(cause, _UNAVAILABLE):
            raise DatabaseUnavailable from error
        raise
    except (PoolTimeoutError, OSError, *_UNAVAILABLE) as error:
        # Connecting fails with the driver's own errors or the system's; TimeoutError is an OSError.
        raise DatabaseUnavailable from error
