"""A paid vendor that refuses, stumbles, forgets, never ends or serves rubbish: one order, and a clear end.

Each job has a prompt of its own, by which the vendor's ledger knows it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2
import pytest
from tests.cluster.cluster import PAID, Cluster, open_cluster
from tests.cluster.invariants import check_invariants

HASTY = "hasty"
CONFIG = f"""
[models.{HASTY}]
provider = "replicate"
ref = "{PAID}"
attempt_timeout = "3s"
"""
_NUMBERS = itertools.count(1)


def slow(value: object) -> Any:
    """A row of a table that only the whole suite runs."""
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    with open_cluster(config=CONFIG, max_output_bytes="300000", reconcile_grace="2") as cluster:
        yield cluster
        check_invariants(cluster)


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """The cluster of this module; its vendor behaves, and its model is not paused."""
    yield shared
    shared.vendor.forget_rules()
    shared.query("DELETE FROM lane_state")


def order(cluster: Cluster, script: dict[str, Any] | None = None, **request: Any) -> str:
    """A job whose order goes as the script says."""
    prompt = f"vendor {next(_NUMBERS)}"
    return cluster.submit(prompt, **{"model": PAID, "input": {"fake": script or {}}} | request)


def creates(cluster: Cluster, job_id: str) -> list[dict[str, Any]]:
    """Every create of a job, refused ones too."""
    prompt = cluster.job(job_id)["prompt"]
    return [entry for entry in cluster.vendor.ledger if entry["input"]["prompt"] == prompt]


def stored(cluster: Cluster, job_id: str) -> list[str]:
    return [key for key in cluster.objects() if job_id in key]


def in_two_seconds() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)


class TestThrottled:
    @pytest.mark.parametrize(
        "script",
        [
            {"headers": {"Retry-After": "1"}},
            {"headers": {"Retry-After": "HTTP date"}},
            {"body": {"detail": "Request was throttled. Your rate limit resets in ~1s."}},
        ],
        ids=["seconds", "a date", "in the text"],
    )
    def test_a_429_is_waited_for_and_costs_no_attempt(
        self, cluster: Cluster, script: dict[str, dict[str, str]]
    ) -> None:
        if script.get("headers", {}).get("Retry-After") == "HTTP date":
            script = {"headers": {"Retry-After": in_two_seconds()}}
        cluster.vendor.on("create", status=429, **script)

        job = cluster.wait_end(order(cluster))

        refused, taken = creates(cluster, job["id"])
        waited = datetime.fromisoformat(taken["at"]) - datetime.fromisoformat(refused["at"])
        assert (job["status"], job["failures"]) == ("completed", 0)
        assert [order["resolution"] for order in job["submissions"]] == ["rejected", "result"]
        # A date has whole seconds, and the clock may stand just before the next one.
        assert waited >= timedelta(seconds=0.9)

    def test_a_429_that_asks_for_a_year_pauses_the_model_for_a_quarter_of_an_hour(
        self, cluster: Cluster
    ) -> None:
        cluster.vendor.on("create", status=429, headers={"Retry-After": "31536000"})
        job_id = order(cluster)
        job = cluster.wait_for(job_id, lambda job: job["reason"] == "deferred")
        model = httpx2.get(f"{cluster.apis[0].url}/v1/models/{PAID}").json()

        cluster.post(f"/v1/models/{PAID}/resume")
        ended = cluster.wait_end(job_id)

        until = datetime.fromisoformat(model["pause"]["until"]) - datetime.now(UTC)
        assert job["error"]["code"] == "throttled"
        assert timedelta(minutes=14) < until <= timedelta(minutes=15)
        assert (ended["status"], ended["failures"]) == ("completed", 0)

    @pytest.mark.parametrize(("status", "code"), [(401, "provider_auth"), (402, "quota_exhausted")])
    def test_a_refused_key_and_an_empty_account_wait_for_an_operator(
        self, cluster: Cluster, status: int, code: str
    ) -> None:
        cluster.vendor.on("create", status=status)
        job_id = order(cluster)
        waiting = cluster.wait_for(job_id, lambda job: job["reason"] == "deferred")

        cluster.post(f"/v1/models/{PAID}/resume")
        ended = cluster.wait_end(job_id)

        assert waiting["error"]["code"] == code
        assert (ended["status"], ended["failures"]) == ("completed", 0)
        assert len(cluster.paid(job_id)) == 1


class TestBursts:
    def test_creates_that_were_refused_before_they_did_anything_are_repeated(self, cluster: Cluster) -> None:
        cluster.vendor.on("create", status=503, times=2)

        job = cluster.wait_end(order(cluster))

        assert (job["status"], job["failures"]) == ("completed", 2)
        assert [order["resolution"] for order in job["submissions"]] == ["rejected", "rejected", "result"]

    @pytest.mark.parametrize("status", [slow(500), 502, slow(504)])
    def test_a_create_that_may_have_done_something_is_not_repeated(
        self, cluster: Cluster, status: int
    ) -> None:
        cluster.vendor.on("create", status=status)

        job = cluster.wait_end(order(cluster))

        assert job["error"]["code"] == "ambiguous_submission"
        assert len(creates(cluster, job["id"])) == 1

    def test_a_create_that_was_taken_and_answered_with_an_error_is_found_again(
        self, cluster: Cluster
    ) -> None:
        cluster.vendor.on("create", status=502, accepted=True)

        job = cluster.wait_end(order(cluster))

        assert job["status"] == "completed"
        assert len(cluster.paid(job["id"])) == 1

    @pytest.mark.parametrize("status", [slow(500), slow(502), 503, slow(504)])
    def test_polls_that_fail_never_lead_to_another_order(self, cluster: Cluster, status: int) -> None:
        cluster.vendor.on("get", status=status, times=4)

        job = cluster.wait_end(order(cluster, {"seconds": 0.5}))

        assert job["status"] == "completed"
        assert len(creates(cluster, job["id"])) == 1


class TestNeverEnds:
    @pytest.mark.slow
    def test_an_order_that_never_ends_is_given_up_canceled_and_paid_once(self, cluster: Cluster) -> None:
        job = cluster.wait_end(order(cluster, {"end": "never"}, model=HASTY, max_attempts=2))

        [paid] = cluster.paid(job["id"])
        assert (job["error"]["code"], job["failures"]) == ("attempts_exhausted", 2)
        assert "took longer" in job["error"]["message"]
        assert prediction(cluster, paid["id"])["status"] == "canceled"

    def test_a_client_that_cancels_stops_the_order(self, cluster: Cluster) -> None:
        job_id = order(cluster, {"end": "never"})
        cluster.wait_for(job_id, lambda job: job["submissions"] and job["submissions"][0]["accepted_at"])
        time.sleep(0.2)

        cluster.post(f"/v1/media/jobs/{job_id}/cancel")
        job = cluster.wait_end(job_id)

        [paid] = cluster.paid(job_id)
        assert job["status"] == "canceled"
        assert [order["resolution"] for order in job["submissions"]] == ["canceled"]
        assert prediction(cluster, paid["id"])["status"] in {"canceled", "aborted"}


class TestOutputs:
    @pytest.mark.parametrize(
        "script",
        [
            {"file": "missing"},
            {"file": "html"},
            slow({"file": "empty"}),
            slow({"file": "truncated"}),
            slow({"file": "error"}),
            slow({"file": "loop"}),
            slow({"output": "null"}),
        ],
        ids=lambda script: str(*script.values()),
    )
    def test_rubbish_is_asked_for_again_not_ordered_again_and_nothing_is_stored(
        self, cluster: Cluster, script: dict[str, str]
    ) -> None:
        job = cluster.wait_end(order(cluster, script, max_attempts=2))

        assert (job["error"]["code"], job["failures"]) == ("attempts_exhausted", 2)
        assert len(creates(cluster, job["id"])) == 1
        assert stored(cluster, job["id"]) == []
        assert job["media"] == []

    @pytest.mark.parametrize("file", ["huge", "endless"])
    def test_an_output_without_measure_is_cut_off_once(self, cluster: Cluster, file: str) -> None:
        job = cluster.wait_end(order(cluster, {"file": file, "size": 2_000_000}))

        assert job["error"]["code"] == "output_too_large"
        assert len(job["attempts"]) == 1
        assert stored(cluster, job["id"]) == []

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("change", "code"), [({"expired": True}, "result_expired"), ({"lost": True}, "result_expired")]
    )
    def test_a_result_that_is_gone_when_its_job_is_resumed_is_told_and_not_bought_again(
        self, cluster: Cluster, change: dict[str, bool], code: str
    ) -> None:
        job_id = order(cluster, {"seconds": 3})
        cluster.wait_for(job_id, lambda job: job["submissions"] and job["submissions"][0]["accepted_at"])
        cluster.workers[0].kill()
        [paid] = cluster.paid(job_id)
        cluster.vendor.change(paid["id"], **change)
        time.sleep(3)
        cluster.workers[0].start()

        job = cluster.wait_end(job_id)

        assert (job["status"], job["error"]["code"]) == ("error", code)
        assert len(creates(cluster, job_id)) == 1

    def test_a_refused_prompt_is_not_tried_again(self, cluster: Cluster) -> None:
        job = cluster.wait_end(order(cluster, {"end": "failed", "error": "NSFW content detected"}))

        assert job["error"]["code"] == "content_refused"
        assert len(creates(cluster, job["id"])) == 1


def prediction(cluster: Cluster, prediction_id: str) -> dict[str, Any]:
    """What the vendor says of an order."""
    headers = {"Authorization": f"Bearer {cluster.vendor.token}"}
    answer = httpx2.get(f"{cluster.vendor.origin}/v1/predictions/{prediction_id}", headers=headers)
    return dict(answer.raise_for_status().json())
