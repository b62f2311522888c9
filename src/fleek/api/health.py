"""Health: whether the process lives, and whether it can serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import text
from starlette.responses import Response

from fleek.api import examples, responses as docs
from fleek.api.answers import answer
from fleek.api.deps import CallDep
from fleek.api.problems import document, request_id_of, respond
from fleek.api.strict_json import StrictRoute
from fleek.core.errors import DatabaseUnavailable, FleekError
from fleek.storage.base import StorageError

router = APIRouter(tags=["health"], route_class=StrictRoute)

_DATABASE_SECONDS = 1.0
_OTHER_SECONDS = 3.0
_PROBE = text("SELECT 1")


class Live(BaseModel):
    """The process answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.LIVE]})

    status: Literal["ok"]


class PartHealth(BaseModel):
    """How one part answered."""

    status: Literal["ok", "unavailable"]
    latency_ms: float


class Ready(BaseModel):
    """Whether requests can be served; `degraded`: yes, though a part that they can do without is away."""

    model_config = ConfigDict(json_schema_extra={"examples": list(examples.READY.values())})

    status: Literal["ok", "degraded"]
    checks: dict[str, PartHealth] | None = Field(
        description="`database`, `broker` and `storage`; null unless `verbose` is asked for"
    )


_Verbose = Annotated[
    Literal["", "true", "false"],
    Query(description="Look at every part, and say how each answered; `?verbose` alone means yes"),
]


@router.get("/livez", operation_id="get_liveness", response_model=Live, responses=docs.get_liveness())
async def get_liveness() -> Response:
    """The process lives. Nothing else is looked at: restarting it would not bring a database back."""
    return answer(Live(status="ok"))


@router.get("/readyz", operation_id="get_readiness", response_model=Ready, responses=docs.get_readiness())
@router.get("/health", operation_id="get_health", response_model=Ready, responses=docs.get_readiness())
async def get_readiness(request: Request, call: CallDep, verbose: _Verbose = "false") -> Response:
    """Whether requests can be served; `/health` and `/readyz` are the same.

    Only the database decides. Without the broker jobs start later by about a second; without the
    object store they are accepted, and stored once it is back: then the status is `degraded`.
    """
    context, looks_at_all = call.context, verbose != "false"
    probes = {"database": _probe(context.database.fetch_one(_PROBE), _DATABASE_SECONDS)}
    if looks_at_all:
        probes["broker"] = _probe(context.pubsub.ping(), _OTHER_SECONDS)
        probes["storage"] = _probe(context.storage.check(), _OTHER_SECONDS)
    checks = dict(zip(probes, await asyncio.gather(*probes.values()), strict=True))
    if checks["database"].status != "ok":
        return _unready(request, checks if looks_at_all else None)
    degraded = any(check.status != "ok" for check in checks.values())
    return answer(Ready(status="degraded" if degraded else "ok", checks=checks if looks_at_all else None))


async def _probe(work: Awaitable[object], seconds: float) -> PartHealth:
    """How a part answers, and after how many milliseconds."""
    began = time.perf_counter()
    is_well = True
    try:
        async with asyncio.timeout(seconds):
            await work
    except (FleekError, StorageError, OSError):
        is_well = False  # Out of time is an OSError as well.
    milliseconds = round((time.perf_counter() - began) * 1000, 1)
    return PartHealth(status="ok" if is_well else "unavailable", latency_ms=milliseconds)


def _unready(request: Request, checks: dict[str, PartHealth] | None) -> Response:
    """A problem document like any other, with what was looked at as an extension member."""
    error = DatabaseUnavailable()
    status, request_id = HTTPStatus.SERVICE_UNAVAILABLE, request_id_of(request)
    body = document(status, error.code, error.message, request_id)
    if checks is not None:
        body["checks"] = {name: check.model_dump() for name, check in checks.items()}
    return respond(body, {"Retry-After": "2"})
