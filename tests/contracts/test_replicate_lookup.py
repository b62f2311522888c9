"""Finding the prediction of an order whose answer was lost, and no other."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.contracts.provider_suite import Attempt, follow
from tests.replicate_client import (
    REQUEST,
    VERSION,
    connect,
    failure,
    lookup,
    order,
)
from tests.replicate_server import ReplicateServer

from fleek.core.errors import ProviderErrorKind as Kind
from fleek.core.media import OutputFormat
from fleek.providers.base import GenerationRequest
from fleek.providers.replicate import ReplicateProvider


async def lose_reply(provider: ReplicateProvider, request: GenerationRequest = REQUEST) -> None:
    """Place an order whose answer does not arrive."""
    error = await failure(provider, request)
    assert error.kind is Kind.AMBIGUOUS


@pytest.mark.parametrize(
    "ref", ["acme/lighthouse", f"acme/lighthouse:{VERSION}", VERSION, "deployments/acme/app"]
)
async def test_an_order_whose_answer_was_lost_is_found_and_continued(
    vendor: ReplicateServer, replicate: ReplicateProvider, ref: str
) -> None:
    request = replace(REQUEST, ref=ref)
    await order(replicate, replace(request, seed=8))
    vendor.on("create", cut="after")
    intent_at = datetime.now(UTC)
    await lose_reply(replicate, request)
    await order(replicate, replace(request, seed=9))

    [handle] = await replicate.find(request, lookup(intent_at))

    assert handle.id == vendor.accepted[1]["id"]
    assert len((await follow(replicate, handle, Attempt())).outputs) == 1
    assert len(vendor.accepted) == 3


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, seed=8),
        replace(REQUEST, prompt="a lighthouse at dusk"),
        replace(REQUEST, ref="black-forest-labs/flux-dev"),
        replace(REQUEST, input={"num_outputs": 2}),
        replace(REQUEST, output_format=OutputFormat.WEBP),
    ],
    ids=["seed", "prompt", "model", "input", "format"],
)
async def test_an_order_that_differs_in_anything_is_not_taken_for_the_lost_one(
    replicate: ReplicateProvider, other: GenerationRequest
) -> None:
    await order(replicate, other)

    assert not await replicate.find(REQUEST, lookup())


async def test_of_two_orders_that_fit_both_are_told(replicate: ReplicateProvider) -> None:
    placed = {(await order(replicate)).id for _ in range(2)}

    assert {handle.id for handle in await replicate.find(REQUEST, lookup())} == placed


@pytest.mark.parametrize(("age", "found"), [(0, True), (50, True), (-110, True), (70, False), (-130, False)])
async def test_only_an_order_of_the_time_of_the_intent_is_taken(
    vendor: ReplicateServer, replicate: ReplicateProvider, age: float, found: bool
) -> None:
    handle = await order(replicate)
    intent_at = vendor.predictions[handle.id].created_at + timedelta(seconds=age)

    assert bool(await replicate.find(REQUEST, lookup(intent_at))) is found


@pytest.mark.parametrize(("minutes", "found"), [(59, True), (61, False)])
async def test_without_a_time_the_last_hour_is_looked_through(
    vendor: ReplicateServer, replicate: ReplicateProvider, minutes: float, found: bool
) -> None:
    handle = await order(replicate)
    vendor.predictions[handle.id].created_at -= timedelta(minutes=minutes)

    assert bool(await replicate.find(REQUEST, lookup())) is found


async def test_every_page_is_read_with_the_token_going_nowhere_else() -> None:
    async with ReplicateServer(page=2) as vendor:
        provider = connect(vendor)
        wanted = await order(provider)
        for seed in range(8, 13):
            await order(provider, replace(REQUEST, seed=seed))

        [handle] = await provider.find(REQUEST, lookup())
        await provider.aclose()

        assert handle.id == wanted.id
        assert len(vendor.requests_to("list")) == 3
        assert all("created_after" in page.query for page in vendor.requests_to("list"))


async def test_a_list_without_end_is_not_read_to_its_end(
    vendor: ReplicateServer, replicate: ReplicateProvider
) -> None:
    vendor.on("list", times=None, body={"next": f"{vendor.url}/predictions?cursor=1", "results": [7, None]})

    assert not await replicate.find(REQUEST, lookup())
    assert len(vendor.requests_to("list")) == 25


async def test_an_order_placed_without_the_schema_is_found_with_it(
    vendor: ReplicateServer, replicate: ReplicateProvider
) -> None:
    vendor.on("model", status=404)
    handle = await order(replicate)
    later = connect(vendor)

    [found] = await later.find(REQUEST, lookup())
    await later.aclose()

    assert found.id == handle.id


@pytest.mark.parametrize(
    "trouble",
    [{"status": 500}, {"cut": "after"}, {"body": "<h1>OK</h1>"}, {"body": {"results": 1}}, {"status": 401}],
)
async def test_what_cannot_be_looked_up_cannot_be_told(
    vendor: ReplicateServer, replicate: ReplicateProvider, trouble: dict[str, Any]
) -> None:
    await order(replicate)
    vendor.on("list", times=None, **trouble)

    assert not await replicate.find(REQUEST, lookup())
