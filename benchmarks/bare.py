"""The limit of this stack: FastAPI routes of one statement on plain asyncpg, or of one GET of Redis; no more.

python -m benchmarks.bare FD DSN REDIS       (a listening socket that was inherited)
"""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from redis.asyncio import Redis
from starlette.responses import Response

TABLE = """
CREATE TABLE bare (
    id uuid PRIMARY KEY,
    prompt text NOT NULL,
    status text NOT NULL DEFAULT 'in_queue',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
)
"""
_INSERT = "INSERT INTO bare (id, prompt) VALUES ($1, $2) RETURNING created_at"
_SELECT = "SELECT id, status, created_at FROM bare WHERE id = $1"
_POOL_SIZE = 20


class Submit(BaseModel):
    """The body of a submit."""

    prompt: str


class Row(BaseModel):
    """What is known of a row."""

    id: UUID
    status: str
    created_at: Any


async def _leave_as_it_is(_connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """No RESET statement after each use: it would double the round trips."""


def create_app(dsn: str, redis_url: str) -> FastAPI:
    """Three routes on pools of connections."""
    redis = Redis.from_url(redis_url)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with asyncpg.create_pool(
            dsn, min_size=_POOL_SIZE, max_size=_POOL_SIZE, reset=_leave_as_it_is
        ) as pool:
            app.state.pool = pool
            yield
        await redis.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/readyz")
    async def ready() -> None:
        """The pool is open."""

    @app.post("/jobs", status_code=202)
    async def submit(body: Submit) -> Row:
        row_id = uuid4()
        created_at = await app.state.pool.fetchval(_INSERT, row_id, body.prompt)
        return Row(id=row_id, status="in_queue", created_at=created_at)

    @app.get("/jobs/{row_id}")
    async def status(row_id: UUID) -> Row:
        row = await app.state.pool.fetchrow(_SELECT, row_id)
        return Row(id=row["id"], status=row["status"], created_at=row["created_at"])

    @app.get("/cached/{row_id}")
    async def cached(row_id: UUID) -> Response:
        known = await redis.get(f"bare:{row_id}")
        if known is None:
            known = (await status(row_id)).model_dump_json().encode()
            await redis.set(f"bare:{row_id}", known)
        return Response(known, media_type="application/json")

    return app


if __name__ == "__main__":
    _config = uvicorn.Config(
        create_app(*sys.argv[2:]), log_config=None, access_log=False, server_header=False
    )
    uvicorn.Server(_config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
