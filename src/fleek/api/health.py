"""Health: whether the process lives, and whether it can serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from fleek.api import examples, responses as docs
from fleek.api.answers import answer
from fleek.api.deps import ContextDep
from fleek.api.problems import document, request_id_of, respond
from fleek.api.strict_json import StrictRoute
from fleek.bootstrap.api import ApiContext
from fleek.core.errors import DatabaseUnavailable, FleekError, Unavailable
from fleek.queue.round_trip import RoundTrips
from fleek.storage.base import StorageError, StorageRefusedError

router = APIRouter(tags=["health"], route_class=StrictRoute)

_DATABASE_SECONDS = 1.0
_OTHER_SECONDS = 3.0
_DECISIVE = ("database", "schema")
"""The parts without which no job can be accepted."""


class Live(BaseModel):
    """The process answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.LIVE]})

    status: Literal["ok"]


class PartHealth(BaseModel):
    """How one part answered."""

    status: Literal["ok", "unavailable"]
    latency_ms: float
    remedy: str | None = Field(
        default=None, description="What to do about it; null where all is well, or where nobody knows"
    )


class Ready(BaseModel):
    """Whether requests can be served; `degraded`: yes, though a part that they can do without is away."""

    model_config = ConfigDict(json_schema_extra={"examples": list(examples.READY.values())})

    status: Literal["ok", "degraded"]
    checks: dict[str, PartHealth] | None = Field(
        description="`database`, `schema`, `broker`, `storage`, `celery`; null unless `verbose` is asked for"
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
async def get_readiness(request: Request, context: ContextDep, verbose: _Verbose = "false") -> Response:
    """Whether jobs can be accepted; `/health` and `/readyz` are the same.

    Only the database decides: it answers, takes writes, and has a schema that this release can work with.
    Without the broker or a worker jobs start later; without the object store they are accepted, and stored
    once it is back: then the status is `degraded`. `verbose` asks every part, and makes a round trip through
    Celery: with no worker to answer it takes 2.5 s.
    """
    if verbose == "false":
        found = await examine({"database": _look(context.schema.probe(), _DATABASE_SECONDS)})
        return refuse(request, found.error) if found.error else answer(Ready(status="ok", checks=None))
    found = await examine_all(context)
    if found.error:
        return refuse(request, found.error, {"checks": found.as_json()})
    return answer(Ready(status=found.status, checks=found.checks))


@dataclass(frozen=True, slots=True)
class Findings:
    """How the parts that were asked are."""

    checks: dict[str, PartHealth]
    error: Unavailable | None
    """Why no job can be accepted."""

    @property
    def status(self) -> Literal["ok", "degraded"]:
        """`degraded` where a part is away."""
        return "ok" if all(check.status == "ok" for check in self.checks.values()) else "degraded"

    def as_json(self) -> dict[str, Any]:
        """The parts, for a problem document."""
        return {name: check.model_dump() for name, check in self.checks.items()}


async def examine_all(context: ApiContext) -> Findings:
    """Ask every part, all at the same time."""
    return await examine(
        {
            "database": _look(context.schema.require_writes(), _DATABASE_SECONDS),
            "schema": _look(context.schema.require_now(), _DATABASE_SECONDS),
            "broker": _look(context.pubsub.ping(), _OTHER_SECONDS),
            "storage": _look(context.storage.check(), _OTHER_SECONDS),
            "celery": _look(_require_answers(context.round_trips), _OTHER_SECONDS),
        }
    )


async def examine(looks: Mapping[str, Awaitable[tuple[PartHealth, Unavailable | None]]]) -> Findings:
    """What came of the looks; the first decisive part that is away gives the error."""
    found = dict(zip(looks, await asyncio.gather(*looks.values()), strict=True))
    failures = [found[name][1] for name in _DECISIVE if name in found]
    error = next((failure for failure in failures if failure is not None), None)
    return Findings({name: health for name, (health, _) in found.items()}, error)


def refuse(request: Request, error: Unavailable, facts: Mapping[str, Any] | None = None) -> Response:
    """A problem document like any other, with `facts` as extension members."""
    body = document(HTTPStatus.SERVICE_UNAVAILABLE, error.code, error.message, request_id_of(request))
    return respond(body | dict(facts or {}), {"Retry-After": "2"})


async def _look(work: Awaitable[object], seconds: float) -> tuple[PartHealth, Unavailable | None]:
    """How a part answers and after how many milliseconds; and the error of one that does not."""
    began = time.perf_counter()
    error: Unavailable | None = None
    remedy: str | None = None
    try:
        async with asyncio.timeout(seconds):
            await work
    except Unavailable as raised:
        error = raised
    except StorageRefusedError as refused:
        error, remedy = DatabaseUnavailable(), refused.remedy
    except (FleekError, StorageError, OSError):
        error = DatabaseUnavailable()  # Out of time is an OSError as well.
    milliseconds = round((time.perf_counter() - began) * 1000, 1)
    status: Literal["ok", "unavailable"] = "unavailable" if error else "ok"
    return PartHealth(status=status, latency_ms=milliseconds, remedy=remedy), error


async def _require_answers(round_trips: RoundTrips) -> None:
    """Raise OSError unless a worker of every queue answers."""
    if any(trip.presence is None for trip in await round_trips.ask()):
        raise TimeoutError
