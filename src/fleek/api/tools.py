"""What people ask of a running Fleek: how all of it is, who works, and what runs here."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from fleek import __version__
from fleek.api import responses as docs
from fleek.api.answers import answer
from fleek.api.deps import ContextDep
from fleek.api.health import PartHealth, examine_all, refuse
from fleek.api.strict_json import StrictRoute
from fleek.core.errors import FleekError
from fleek.db.schema import Schema, SchemaState
from fleek.providers.registry import Catalog
from fleek.queue.round_trip import RoundTrip

router = APIRouter(tags=["health"], route_class=StrictRoute)

_ASK_SECONDS = 3.0
_LOOK_SECONDS = 1.0


class ToolsStatus(BaseModel):
    """How every part is, as `/readyz?verbose` has it, and the version that says so."""

    version: str
    status: Literal["ok", "degraded"]
    checks: dict[str, PartHealth]


class AnsweringWorker(BaseModel):
    """What a worker process says of itself."""

    name: str
    version: str
    queues: list[str]
    ready: bool = Field(description="Whether it claims jobs at the moment")


class QueueStatus(BaseModel):
    """What came of the question to one queue. Of several workers that serve it, one gets the question."""

    queue: str
    waiting: int = Field(description="Messages that lay in the broker for the queue: wake-ups, not jobs")
    worker: AnsweringWorker | None = Field(description="Who answered; null when nobody did in time")
    latency_ms: float | None = Field(description="From the question to the answer")


class CeleryStatus(BaseModel):
    """`ok`: a worker of each queue in use answered."""

    status: Literal["ok", "unavailable"]
    queues: list[QueueStatus]


class Migration(BaseModel):
    """The database's schema, beside the one that this release makes."""

    current: str | None = Field(description="Null for an empty database, and where it does not answer")
    head: str | None
    status: Literal["unknown", "empty", "older", "current", "newer"]


class InfoModel(BaseModel):
    """A model, in short; `/v1/models` has all of it."""

    name: str
    provider: str | None
    available: bool


class Info(BaseModel):
    """What runs here."""

    version: str
    api_version: Annotated[str, Field(description="The prefix of the routes")]
    migration: Migration
    models: list[InfoModel]


@router.get(
    "/tools/status",
    operation_id="get_tools_status",
    response_model=ToolsStatus,
    responses=docs.get_tools_status(),
)
async def get_tools_status(request: Request, context: ContextDep) -> Response:
    """How every part is: `/readyz?verbose`, with the version."""
    found = await examine_all(context)
    if found.error:
        return refuse(request, found.error, {"version": __version__, "checks": found.as_json()})
    return answer(ToolsStatus(version=__version__, status=found.status, checks=found.checks))


@router.get(
    "/tools/celery_status",
    operation_id="get_celery_status",
    response_model=CeleryStatus,
    responses=docs.get_celery_status(),
)
async def get_celery_status(context: ContextDep) -> Response:
    """Who works: a message goes through Celery to each queue in use, and a worker that lives answers it.

    With nobody there this takes 2.5 s, and the status is `unavailable`.
    """
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            trips = await context.round_trips.ask()
    except OSError as error:  # Out of time is one.
        raise docs.no_broker() from error
    is_served = all(trip.presence is not None for trip in trips)
    queues = [_to_status(trip) for trip in trips]
    return answer(CeleryStatus(status="ok" if is_served else "unavailable", queues=queues))


@router.get("/v1/info", operation_id="get_info", response_model=Info, responses=docs.get_info())
async def get_info(context: ContextDep) -> Response:
    """What runs here: the version, the database's schema and the models. Answers without a database, too."""
    migration = await _look_at(context.schema)
    return answer(
        Info(version=__version__, api_version="v1", migration=migration, models=_in_short(context.catalog))
    )


def _to_status(trip: RoundTrip) -> QueueStatus:
    presence, latency = trip.presence, trip.latency
    worker = None
    if presence is not None:
        worker = AnsweringWorker(
            name=presence.worker,
            version=presence.version,
            queues=list(presence.queues),
            ready=presence.ready,
        )
    milliseconds = None if latency is None else round(latency * 1000, 1)
    return QueueStatus(queue=trip.queue, waiting=trip.waiting, worker=worker, latency_ms=milliseconds)


async def _look_at(schema: Schema) -> Migration:
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            status = await schema.look()
    except (FleekError, TimeoutError):
        return Migration(current=None, head=schema.head, status=SchemaState.UNKNOWN.value)
    return Migration(current=schema.revision, head=schema.head, status=status.value)


def _in_short(catalog: Catalog) -> list[InfoModel]:
    available = [
        InfoModel(name=model.name, provider=model.provider.name, available=True) for model in catalog.all()
    ]
    return available + [InfoModel(name=name, provider=None, available=False) for name in catalog.unavailable]
