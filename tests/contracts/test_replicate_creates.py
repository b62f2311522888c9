"""Ordering at Replicate: one create an order, whatever becomes of it, and what its failure means."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.contracts.provider_suite import Attempt, follow
from tests.replicate_client import (
    HASTY,
    LATE,
    PATIENCE,
    REQUEST,
    VERSION,
    connect,
    failure,
    order,
)
from tests.replicate_server import ReplicateServer

from fleek.core.errors import ProviderErrorKind as Kind
from fleek.core.media import MAX_SEED, OutputFormat
from fleek.jobs.orders import OrderLimits
from fleek.providers.replicate import ReplicateProvider
from fleek.providers.replicate_api import Patience

STALLS = {"Content-Length": "1000"}
"""What is announced does not come."""


@pytest.mark.parametrize(
    ("ref", "path", "body"),
    [
        ("acme/lighthouse", "/v1/models/acme/lighthouse/predictions", {}),
        (f"acme/lighthouse:{VERSION}", "/v1/predictions", {"version": VERSION}),
        (VERSION, "/v1/predictions", {"version": VERSION}),
        ("deployments/acme/app", "/v1/deployments/acme/app/predictions", {}),
    ],
    ids=["official", "version", "bare version", "deployment"],
)
async def test_a_create_is_one_request_that_does_not_wait_and_ends_by_itself(
    vendor: ReplicateServer, replicate: ReplicateProvider, ref: str, path: str, body: dict[str, Any]
) -> None:
    done = await follow(replicate, await order(replicate, replace(REQUEST, ref=ref)), Attempt())

    [create] = vendor.requests_to("create")
    sent = create.json()
    assert create.path == path
    assert {key: value for key, value in sent.items() if key != "input"} == body
    assert (sent["input"]["prompt"], sent["input"]["seed"]) == ("a lighthouse at dawn", 7)
    assert create.headers["authorization"] == f"Bearer {vendor.token}"
    assert create.headers["cancel-after"] in {"59s", "60s"}
    assert "prefer" not in create.headers
    assert len(done.outputs) == 1


@pytest.mark.parametrize(("left", "sent"), [(-5, "5s"), (3, "5s"), (7.9, "7s"), (3600.5, "3600s")])
async def test_the_time_left_is_the_predictions_own_deadline(
    vendor: ReplicateServer, replicate: ReplicateProvider, left: float, sent: str
) -> None:
    await replicate.submit(REQUEST, Attempt(timeout=timedelta(seconds=left)).context)

    assert vendor.ledger[0]["headers"]["cancel-after"] == sent


async def test_the_input_is_what_the_models_schema_has_and_the_schema_is_asked_for_once(
    vendor: ReplicateServer, replicate: ReplicateProvider
) -> None:
    request = replace(
        REQUEST,
        ref="acme/sized",
        seed=MAX_SEED,
        width=768,
        height=512,
        size_asked=True,
        negative_prompt="fog",
        output_format=OutputFormat.JPEG,
        input={"num_outputs": 2},
    )
    await order(replicate, request)
    await order(replicate, replace(request, ref="silent/model"))
    await order(replicate, request)

    first, second, third = (entry["input"] for entry in vendor.ledger)
    assert (
        first
        == third
        == {
            "prompt": "a lighthouse at dawn",
            "seed": MAX_SEED % 2**31,
            "negative_prompt": "fog",
            "output_format": "jpg",
            "width": 768,
            "height": 512,
            "num_outputs": 2,
        }
    )
    assert second == {
        "prompt": "a lighthouse at dawn",
        "seed": MAX_SEED,
        "width": 768,
        "height": 512,
        "num_outputs": 2,
    }
    assert [asked.path for asked in vendor.requests_to("model")] == [
        "/v1/models/acme/sized",
        "/v1/models/silent/model",
    ]


async def test_orders_that_begin_together_ask_for_the_schema_once(
    vendor: ReplicateServer, replicate: ReplicateProvider
) -> None:
    """One of them is canceled meanwhile, which is none of the others' business."""
    vendor.on("model", delay=0.3)
    canceled, *others = [asyncio.create_task(order(replicate)) for _ in range(8)]
    await asyncio.sleep(0.1)
    canceled.cancel()
    await asyncio.gather(*others)

    assert len(vendor.ledger) == len(others)
    assert len(vendor.requests_to("model")) == 1


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        ({"status": 500}, Kind.TRANSIENT),
        ({"cut": "after"}, Kind.TRANSIENT),
        ({"status": 429, "body": {"detail": "resets in ~30s"}}, Kind.THROTTLED),
        ({"status": 401}, Kind.PERMANENT_AUTH),
    ],
)
async def test_without_the_models_schema_nothing_is_ordered(
    vendor: ReplicateServer, replicate: ReplicateProvider, trouble: dict[str, Any], kind: Kind
) -> None:
    vendor.on("model", times=None, **trouble)

    assert (await failure(replicate, REQUEST)).kind is kind
    assert vendor.ledger == []


async def test_a_schema_that_does_not_come_is_given_up_while_there_is_still_time_to_order(
    vendor: ReplicateServer,
) -> None:
    vendor.on("model", times=None, delay=60)
    provider = connect(vendor, patience=Patience(schema=0.5))

    async with asyncio.timeout(10):
        error = await failure(provider, REQUEST)
    await provider.aclose()

    assert error.kind is Kind.TRANSIENT
    assert vendor.ledger == []


def test_an_order_fits_into_the_time_that_the_engine_gives_it() -> None:
    patience = Patience()

    assert patience.schema + patience.create < OrderLimits().create.total_seconds()


async def test_a_ref_that_names_no_model_is_refused_without_a_request(
    vendor: ReplicateServer, replicate: ReplicateProvider
) -> None:
    error = await failure(replicate, replace(REQUEST, ref="flux-schnell"))

    assert error.kind is Kind.PERMANENT_INPUT
    assert vendor.requests == []


async def test_a_model_that_replicate_does_not_know_is_an_invalid_input(replicate: ReplicateProvider) -> None:
    error = await failure(replicate, replace(REQUEST, ref="missing/model"))

    assert error.kind is Kind.PERMANENT_INPUT
    assert "no such model" in error.message


@pytest.mark.parametrize(
    ("script", "kind", "paid"),
    [
        ({"cut": "before"}, Kind.AMBIGUOUS, 0),
        ({"cut": "after"}, Kind.AMBIGUOUS, 1),
        ({"reply_delay": LATE}, Kind.AMBIGUOUS, 1),
        ({"delay": LATE}, Kind.AMBIGUOUS, 0),
        ({"status": 201, "accepted": True, "body": "<h1>Created</h1>"}, Kind.AMBIGUOUS, 1),
        ({"status": 201, "accepted": True, "body": {"id": "../../x"}}, Kind.AMBIGUOUS, 1),
        ({"status": 201, "accepted": True, "body": "{", "headers": STALLS}, Kind.AMBIGUOUS, 1),
        ({"status": 201, "accepted": True, "body": "x" * 34_000_000}, Kind.AMBIGUOUS, 1),
        ({"status": 422, "body": "{", "headers": STALLS}, Kind.PERMANENT_INPUT, 0),
        ({"status": 500, "accepted": True}, Kind.AMBIGUOUS, 1),
        ({"status": 500}, Kind.AMBIGUOUS, 0),
        ({"status": 502, "body": "<h1>Bad Gateway</h1>"}, Kind.AMBIGUOUS, 0),
        ({"status": 504, "accepted": True, "body": "<h1>Timeout</h1>"}, Kind.AMBIGUOUS, 1),
        ({"status": 503}, Kind.TRANSIENT, 0),
        ({"status": 302, "headers": {"Location": "/v1/predictions"}}, Kind.PROVIDER_BUG, 0),
        ({"status": 429, "headers": {"Retry-After": "9"}}, Kind.THROTTLED, 0),
        ({"status": 400}, Kind.PERMANENT_INPUT, 0),
        ({"status": 401}, Kind.PERMANENT_AUTH, 0),
        ({"status": 402}, Kind.QUOTA_EXHAUSTED, 0),
        ({"status": 403}, Kind.PERMANENT_AUTH, 0),
        ({"status": 422}, Kind.PERMANENT_INPUT, 0),
    ],
)
async def test_a_create_is_never_sent_twice_whatever_becomes_of_it(
    vendor: ReplicateServer, script: dict[str, Any], kind: Kind, paid: int
) -> None:
    vendor.on("create", **script)
    is_slow = not {"delay", "reply_delay", "headers"}.isdisjoint(script)
    provider = connect(vendor, patience=HASTY if is_slow else PATIENCE)

    error = await failure(provider, replace(REQUEST, ref=VERSION))
    await provider.aclose()

    assert error.kind is kind
    assert len(vendor.requests_to("create")) == 1
    assert len(vendor.accepted) == paid
    assert error.retry_after == (timedelta(seconds=9) if kind is Kind.THROTTLED else None)


async def test_a_create_that_reached_nobody_provably_did_not_happen(vendor: ReplicateServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    provider = connect(vendor, base_url=f"http://127.0.0.1:{port}/v1")
    # A bare version has no schema to ask for first.
    error = await failure(provider, replace(REQUEST, ref=VERSION))
    await provider.aclose()

    assert error.kind is Kind.TRANSIENT
    assert "could not be reached" in error.message


async def test_a_server_that_takes_no_connection_is_given_up_and_nothing_was_sent(
    vendor: ReplicateServer,
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        blockers = list(_filled(listener))
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        provider = connect(vendor, patience=Patience(), base_url=base_url)
        async with asyncio.timeout(30):
            error = await failure(provider, replace(REQUEST, ref=VERSION))
        await provider.aclose()
        for blocker in blockers:
            blocker.close()

    assert error.kind is Kind.TRANSIENT


def _filled(listener: socket.socket) -> Iterator[socket.socket]:
    """Connections that fill a listener's queue: the next one is not answered."""
    for _ in range(4):
        blocker = socket.socket()
        blocker.setblocking(False)  # noqa: FBT003  the standard library's signature
        blocker.connect_ex(listener.getsockname())
        yield blocker


async def test_every_create_has_a_connection_of_its_own_and_questions_share_one(
    vendor: ReplicateServer, replicate: ReplicateProvider
) -> None:
    handles = [await order(replicate, replace(REQUEST, ref=VERSION)) for _ in range(3)]
    before = vendor.connections
    for handle in handles:
        await replicate.poll(handle, Attempt().context)

    assert before == 3
    assert vendor.connections == 4
