"""Routes of models: what is configured here, what it takes, and what it costs."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer
from starlette.responses import Response

from fleek.api import examples, responses as docs
from fleek.api.answers import answer
from fleek.api.deps import CallDep
from fleek.api.paths import MODEL_NAME
from fleek.api.strict_json import StrictRoute
from fleek.core.errors import NotFound
from fleek.providers.registry import Catalog, Model

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=StrictRoute)


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
    parameters: dict[str, Any] | None = Field(
        description="JSON Schema (2020-12) of a request's `input`; null where it is not known"
    )


class ModelList(BaseModel):
    """Every configured model."""

    items: list[ModelOut]


@router.get("", operation_id="list_models", response_model=ModelList, responses=docs.list_models())
async def list_models(call: CallDep) -> Response:
    """Every configured model, those that are not available included."""
    return answer(ModelList(items=_all(call.context.catalog)))


@router.get(f"/{MODEL_NAME}", operation_id="get_model", response_model=ModelOut, responses=docs.get_model())
async def get_model(
    call: CallDep, name: Annotated[str, Path(description="May contain slashes", examples=["demo"])]
) -> Response:
    """One model; one that is not in the list too, where a provider accepts models that nobody declared."""
    return answer(_find(call.context.catalog, name))


def _find(catalog: Catalog, name: str) -> ModelOut:
    if name in catalog.unavailable:
        return _to_unavailable(name, catalog.unavailable[name])
    return _to_available(catalog.get(name), is_default=name == _default_name(catalog))


def _all(catalog: Catalog) -> list[ModelOut]:
    default = _default_name(catalog)
    available = [_to_available(model, is_default=model.name == default) for model in catalog.all()]
    return available + [_to_unavailable(name, reason) for name, reason in catalog.unavailable.items()]


def _default_name(catalog: Catalog) -> str | None:
    try:
        return catalog.default.name
    except NotFound:
        return None  # The first declared model is not available; no other takes its place.


def _to_available(model: Model, *, is_default: bool) -> ModelOut:
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
        parameters=None,
    )
