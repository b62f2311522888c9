"""What a block of a test asks of PostgreSQL: how many statements, and by which plans."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, event

from fleek.db.session import Database


@dataclass(frozen=True, slots=True)
class Sent:
    """One statement, which is one round trip, as the driver got it."""

    text: str
    parameters: Any


@contextmanager
def sent_statements() -> Iterator[list[Sent]]:
    """The statements that were sent since the block began, whichever engine sent them."""
    sent: list[Sent] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        sent.append(Sent(statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)


async def explain(database: Database, sent: Sent) -> str:
    """PostgreSQL's plan for a statement with the parameters that it was sent with."""
    async with database.connect() as connection:
        rows = await connection.exec_driver_sql(f"EXPLAIN {sent.text}", sent.parameters)
        return "\n".join(rows.scalars())
