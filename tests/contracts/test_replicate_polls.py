"""Following a prediction of Replicate: how far it is, how it ends, and what never ends it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from tests.contracts.provider_suite import Attempt, follow
from tests.replicate_client import (
    HASTY,
    LATE,
    REQUEST,
    asking,
    connect,
    failure,
    order,
)
from tests.replicate_server import ReplicateServer

from fleek.core.errors import ProviderError, ProviderErrorKind as Kind
from fleek.providers.base import Done, Handle, Pending
from fleek.providers.replicate import ReplicateProvider


async def test_a_prediction_tells_its_progress_and_in_the_end_its_times_and_log(
    replicate: ReplicateProvider,
) -> None:
    attempt = Attempt()
    handle = await order(replicate, asking(seconds=0.4, looks=3))

    done = await follow(replicate, handle, attempt)

    assert attempt.progress
    assert attempt.progress == sorted(attempt.progress)
    assert done.metrics["prediction"] == handle.id
    assert done.metrics["predict_time"] == pytest.approx(0.32)
    assert done.metrics["total_time"] == pytest.approx(0.4)
    assert "20/20" in done.metrics["logs"]
    assert done.cost is None


async def test_a_prediction_that_has_not_started_has_no_progress(replicate: ReplicateProvider) -> None:
    handle = await order(replicate, asking(seconds=60))

    assert await replicate.poll(handle, Attempt().context) == Pending(progress=None)


@pytest.mark.parametrize(
    ("end", "error", "kind", "said"),
    [
        ("failed", "CUDA out of memory", Kind.PROVIDER_BUG, "CUDA out of memory"),
        ("failed", "flagged as sensitive (E005)", Kind.PERMANENT_POLICY, "flagged as sensitive"),
        ("failed", "The input was invalid (E006)", Kind.PERMANENT_INPUT, "invalid"),
        ("canceled", "", Kind.TIMEOUT, "canceled the prediction while it ran"),
        ("aborted", "", Kind.TIMEOUT, "before it began"),
    ],
)
async def test_a_prediction_that_ended_badly_says_why(
    vendor: ReplicateServer, replicate: ReplicateProvider, end: str, error: str, kind: Kind, said: str
) -> None:
    vendor.on("create", end=end, error=error)

    found = await failure(replicate, REQUEST)

    assert found.kind is kind
    assert said in found.message


@pytest.mark.parametrize(("starts_after", "said"), [(1, "before it began"), (-1, "while it ran")])
async def test_a_deadline_that_passes_at_replicate_ends_the_order(
    vendor: ReplicateServer, replicate: ReplicateProvider, starts_after: float, said: str
) -> None:
    handle = await order(replicate, asking(seconds=100))
    prediction = vendor.predictions[handle.id]
    prediction.created_at -= timedelta(seconds=50)
    prediction.deadline = prediction.started_at - timedelta(seconds=starts_after)

    with pytest.raises(ProviderError, match=said):
        await replicate.poll(handle, Attempt().context)


@pytest.mark.parametrize(
    "trouble", [{"cut": "before"}, {"cut": "after"}, {"status": 500}, {"status": 503}, {"delay": LATE}]
)
async def test_a_poll_gets_over_two_hiccups(
    vendor: ReplicateServer, replicate: ReplicateProvider, trouble: dict[str, Any]
) -> None:
    handle = await order(replicate)
    vendor.on("get", times=2, **trouble)

    hasty = connect(vendor, patience=HASTY)
    answer = await hasty.poll(handle, Attempt().context)
    await hasty.aclose()

    assert isinstance(answer, Pending | Done)
    assert len(vendor.requests_to("get")) == 3


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        ({"cut": "after"}, Kind.TRANSIENT),
        ({"status": 500}, Kind.TRANSIENT),
        ({"status": 404, "body": "<h1>Not Found</h1>"}, Kind.TRANSIENT),
        ({"status": 400}, Kind.TRANSIENT),
        ({"status": 302, "headers": {"Location": "/v1/predictions"}}, Kind.TRANSIENT),
        ({"body": "<h1>OK</h1>"}, Kind.TRANSIENT),
        ({"body": {"id": "x"}}, Kind.TRANSIENT),
        ({"body": ["x"]}, Kind.TRANSIENT),
        ({"body": {"status": "transcended"}}, Kind.TRANSIENT),
        ({"body": {"status": ["succeeded"]}}, Kind.TRANSIENT),
        ({"status": 429, "body": {"detail": "resets in ~30s"}}, Kind.THROTTLED),
        ({"status": 401}, Kind.PERMANENT_AUTH),
        ({"status": 402}, Kind.QUOTA_EXHAUSTED),
    ],
)
async def test_trouble_with_a_poll_never_ends_the_order(
    vendor: ReplicateServer, replicate: ReplicateProvider, trouble: dict[str, Any], kind: Kind
) -> None:
    handle = await order(replicate)
    vendor.on("get", times=None, **trouble)

    with pytest.raises(ProviderError) as caught:
        await follow(replicate, handle, Attempt())
    vendor.forget_rules()

    assert caught.value.kind is kind
    assert len((await follow(replicate, handle, Attempt())).outputs) == 1
    assert len(vendor.accepted) == 1


async def test_a_prediction_that_is_not_known_yet_is_waited_for(vendor: ReplicateServer) -> None:
    provider = connect(vendor, visible_within=30)
    handle = await order(provider)
    vendor.predictions[handle.id].lost = True

    pending = await provider.poll(handle, Attempt().context)
    vendor.predictions[handle.id].lost = False

    assert pending == Pending(poll_after=timedelta(seconds=1))
    assert len((await follow(provider, handle, Attempt())).outputs) == 1
    await provider.aclose()


@pytest.mark.parametrize("change", ["lost", "expired"])
async def test_a_result_that_is_gone_is_never_ordered_again(
    vendor: ReplicateServer, replicate: ReplicateProvider, change: str
) -> None:
    handle = await order(replicate)
    await follow(replicate, handle, Attempt())
    setattr(vendor.predictions[handle.id], change, True)

    with pytest.raises(ProviderError, match="result_expired") as caught:
        await replicate.poll(handle, Attempt().context)

    assert caught.value.kind is Kind.RESULT_EXPIRED


@pytest.mark.parametrize("data", [{}, {"accepted_at": None}, {"accepted_at": "2026-11-20"}])
async def test_a_handle_that_does_not_tell_its_age_is_old(vendor: ReplicateServer, data: Any) -> None:
    provider = connect(vendor, visible_within=30)

    with pytest.raises(ProviderError, match="result_expired"):
        await provider.poll(Handle("abc", data), Attempt().context)
    await provider.aclose()


async def test_a_cancel_stops_the_prediction(vendor: ReplicateServer, replicate: ReplicateProvider) -> None:
    handle = await order(replicate, asking(end="never"))

    await replicate.cancel(handle)

    assert vendor.predictions[handle.id].canceled_at is not None
    with pytest.raises(ProviderError, match="Replicate"):
        await replicate.poll(handle, Attempt().context)


@pytest.mark.parametrize("trouble", [{"status": 500}, {"cut": "after"}, {"delay": 20}, {"status": 404}])
async def test_a_cancel_is_bounded_and_raises_nothing(
    vendor: ReplicateServer, replicate: ReplicateProvider, trouble: dict[str, Any]
) -> None:
    handle = await order(replicate, asking(end="never"))
    vendor.on("cancel", **trouble)

    hasty = connect(vendor, patience=HASTY)
    async with asyncio.timeout(10):
        await hasty.cancel(handle)
    await hasty.aclose()

    assert len(vendor.requests_to("cancel")) == 1
