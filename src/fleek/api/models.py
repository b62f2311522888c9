"""Routes of models: what is configured here, what it takes, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, StringConstraints
from starlette.responses import Response

from fleek.api import examples, responses as docs
from fleek.api.answers import answer
from fleek.api.deps import Call, CallDep
from fleek.api.paths import MODEL, MODEL_TO
from fleek.api.strict_json import StrictRoute
from fleek.core.errors import NotFound
from fleek.jobs.lanes import Pause
from fleek.jobs.schemas import storable
from fleek.providers.registry import Catalog, Model

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=StrictRoute)

_LONGEST_PAUSE = 31_536_000
"""Seconds; a year."""
_Name = Annotated[str, Path(description="May contain slashes", examples=["demo"])]


class ModelCapabilities(BaseModel):
    """What a model's provider can do."""

    resumable: bool = Field(description="An order that runs is continued after a crash, not placed again")
    client_chosen_id: bool
    lookup: bool = Field(description="An order whose reply was lost can be found")
    cancel: bool = Field(description="A running order can be stopped")
    progress: bool
    seed: bool = Field(description="The same request with the same seed gives the same output")
    max_outputs: int = Field(description="Outputs of one order; more are split into several orders")
    batch: bool
    paid: bool = Field(description="An order costs money, and is never repeated silently")


class Price(BaseModel):
    """What one output costs, as configured."""

    amount: Annotated[Decimal, PlainSerializer(str, return_type=str)]
    currency: Literal["USD"]


class ModelPause(BaseModel):
    """Nothing new of the model is begun; what is under way goes on, and what waits loses no attempt."""

    until: datetime | None = Field(description="null: until it is resumed")
    reason: str = Field(description="A job error code such as `throttled`, or an operator's words")


class PauseRequest(BaseModel):
    """How long, and why; the body may be left out."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"seconds": 900}]})

    seconds: int | None = Field(
        default=None, ge=1, le=_LONGEST_PAUSE, description="null: until it is resumed"
    )
    reason: (
        Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(storable)] | None
    ) = Field(default=None, description="For whoever wonders")


class ModelOut(BaseModel):
    """A model; for one that is not available only the name and the reason are known."""

    model_config = ConfigDict(title="Model", json_schema_extra={"examples": list(examples.MODELS.values())})

    name: str = Field(description="The `model` of a request")
    description: str
    is_default: bool = Field(description="Whether a request without `model` gets this one")
    available: bool
    unavailable_reason: str | None = Field(description="Why not, and what to do about it")
    provider: str | None
    capabilities: ModelCapabilities | None
    price_per_output: Price | None
    pause: ModelPause | None = Field(description="null: it is not paused")
    parameters: dict[str, Any] | None = Field(
        description="JSON Schema (2020-12) of a request's `input`; null where it is not known"
    )


class ModelList(BaseModel):
    """Every configured model."""

    items: list[ModelOut]


@router.get("", operation_id="list_models", response_model=ModelList, responses=docs.list_models())
async def list_models(call: CallDep) -> Response:
    """Every configured model, those that are not available included."""
    pauses = await call.context.lanes.list_pauses()
    return answer(ModelList(items=_all(call.context.catalog, pauses)))


@router.get(f"/{MODEL}", operation_id="get_model", response_model=ModelOut, responses=docs.get_model())
async def get_model(call: CallDep, name: _Name) -> Response:
    """One model; one that is not in the list too, where a provider accepts models that nobody declared."""
    catalog = call.context.catalog
    if name in catalog.unavailable:
        return answer(_to_unavailable(name, catalog.unavailable[name]))
    return await _answer_with(call, catalog.get(name))


@router.post(
    f"/{MODEL_TO}/pause",
    operation_id="pause_model",
    response_model=ModelOut,
    responses=docs.pause_model(),
    openapi_extra=docs.body(examples.PAUSE_REQUESTS),
)
async def pause_model(call: CallDep, name: _Name, body: PauseRequest | None = None) -> Response:
    """Begin nothing new of a model, for a time or until it is resumed.

    Jobs are still accepted, and wait; orders that are placed already are followed to their end.
    """
    model, given = call.context.catalog.get(name), body or PauseRequest()
    length = None if given.seconds is None else timedelta(seconds=given.seconds)
    await call.context.lanes.pause(model, length, given.reason)
    return await _answer_with(call, model)


@router.post(
    f"/{MODEL_TO}/resume",
    operation_id="resume_model",
    response_model=ModelOut,
    responses=docs.resume_model(),
)
async def resume_model(call: CallDep, name: _Name) -> Response:
    """End any pause of a model, also one that a refused key or an empty account has led to.

    Jobs that it has put off are due at once.
    """
    model = call.context.catalog.get(name)
    await call.context.lanes.resume(model)
    return await _answer_with(call, model)


async def _answer_with(call: Call, model: Model) -> Response:
    is_default = model.name == _default_name(call.context.catalog)
    pause = await call.context.lanes.get_pause_or_none(model)
    return answer(_to_available(model, pause, is_default=is_default))


def _all(catalog: Catalog, pauses: Mapping[tuple[str, str], Pause]) -> list[ModelOut]:
    default = _default_name(catalog)
    available = [
        _to_available(model, pauses.get((model.provider.name, model.name)), is_default=model.name == default)
        for model in catalog.all()
    ]
    return available + [_to_unavailable(name, reason) for name, reason in catalog.unavailable.items()]


def _default_name(catalog: Catalog) -> str | None:
    try:
        return catalog.default.name
    except NotFound:
        return None  # The first declared model is not available; no other takes its place.


def _to_available(model: Model, pause: Pause | None, *, is_default: bool) -> ModelOut:
    price = model.price_per_output
    return ModelOut(
        name=model.name,
        description=model.description,
        is_default=is_default,
        available=True,
        unavailable_reason=None,
        provider=model.provider.name,
        capabilities=ModelCapabilities(**asdict(model.provider.capabilities)),
        price_per_output=Price(amount=price, currency="USD") if price is not None else None,
        pause=ModelPause(until=pause.until, reason=pause.reason) if pause is not None else None,
        parameters=dict(model.schema) if model.schema is not None else None,
    )


def _to_unavailable(name: str, reason: str) -> ModelOut:
    return ModelOut(
        name=name,
        description="",
        is_default=False,
        available=False,
        unavailable_reason=reason,
        provider=None,
        capabilities=None,
        price_per_output=None,
        pause=None,
        parameters=None,
    )
