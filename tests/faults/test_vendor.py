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
FAR_DATE = "Fri, 31 Dec 9999 23:59:59 GMT"
CONFIG = f"""
[models.{HASTY}]
provider = "replicate"
ref = "{PAID}"
attempt_timeout = "3s"
"""
_NUMBERS = itertools.count(1)


def slow(*values: object) -> Any:
    """A row of a table that only the whole suite runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


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


def has_order(job: dict[str, Any]) -> bool:
    """Whether its first order was taken, and is known."""
    return bool(job["submissions"] and job["submissions"][0]["accepted_at"])


def stored(cluster: Cluster, job_id: str) -> list[str]:
    return [key for key in cluster.objects() if job_id in key]


def in_two_seconds() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)


class TestThrottled:
    @pytest.mark.parametrize(
        "script",
        [
            {"headers": {"Retry-After": "1"}},
            slow({"headers": {"Retry-After": "HTTP date"}}),
            slow({"body": {"detail": "Request was throttled. Your rate limit resets in ~1s."}}),
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

    @pytest.mark.parametrize(
        ("headers", "least", "most"),
        [
            ({"Retry-After": "31536000"}, timedelta(minutes=14), timedelta(minutes=15)),
            slow({"Retry-After": FAR_DATE}, timedelta(minutes=14), timedelta(minutes=15)),
            slow({}, timedelta(seconds=1), timedelta(seconds=5)),
        ],
        ids=["a year", "a far date", "nothing"],
    )
    def test_a_429_pauses_the_model_for_a_quarter_of_an_hour_at_most(
        self, cluster: Cluster, headers: dict[str, str], least: timedelta, most: timedelta
    ) -> None:
        cluster.vendor.on("create", status=429, headers=headers)
        job_id = order(cluster)
        job = cluster.wait_for(job_id, lambda job: job["reason"] == "deferred")
        model = httpx2.get(f"{cluster.apis[0].url}/v1/models/{PAID}").json()

        cluster.post(f"/v1/models/{PAID}/resume")
        ended = cluster.wait_end(job_id)

        until = datetime.fromisoformat(model["pause"]["until"]) - datetime.now(UTC)
        assert job["error"]["code"] == "throttled"
        assert least < until <= most
        assert (ended["status"], ended["failures"]) == ("completed", 0)
        assert len(cluster.paid(job_id)) == 1

    @pytest.mark.slow
    def test_while_a_model_is_paused_nothing_of_it_is_ordered_and_other_models_go_on(
        self, cluster: Cluster
    ) -> None:
        cluster.vendor.on("create", status=429, headers={"Retry-After": "4"})
        first = order(cluster)
        cluster.wait_for(first, lambda job: job["reason"] == "deferred")
        others = [order(cluster) for _ in range(5)]
        elsewhere = cluster.wait_end(order(cluster, model=HASTY))
        ended = [cluster.wait_end(job_id) for job_id in (first, *others)]

        refused = datetime.fromisoformat(creates(cluster, first)[0]["at"])
        placed = [cluster.paid(job_id)[0]["at"] for job_id in (first, *others)]
        assert elsewhere["status"] == "completed"
        assert {(job["status"], job["failures"]) for job in ended} == {("completed", 0)}
        assert min(map(datetime.fromisoformat, placed)) - refused >= timedelta(seconds=3.9)

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

    @pytest.mark.parametrize("status", [slow(500), slow(502), 504])
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

    @pytest.mark.parametrize("cut", [{"cut": "after"}, slow({"reply_delay": 15})], ids=["cut", "late"])
    def test_a_create_whose_answer_was_lost_is_found_again(
        self, cluster: Cluster, cut: dict[str, Any]
    ) -> None:
        cluster.vendor.on("create", **cut)

        job = cluster.wait_end(order(cluster))

        assert job["status"] == "completed"
        assert len(creates(cluster, job["id"])) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    def test_after_a_burst_of_errors_on_every_route_all_goes_on(self, cluster: Cluster, status: int) -> None:
        under_way = [order(cluster, {"seconds": 1}, max_attempts=10) for _ in range(4)]
        for job_id in under_way:
            cluster.wait_for(job_id, has_order)
        cluster.vendor.on("*", times=None, status=status)
        refused = [order(cluster, max_attempts=10) for _ in range(4)]
        time.sleep(4)
        cluster.vendor.forget_rules()

        followed = [cluster.wait_end(job_id) for job_id in under_way]
        late = [cluster.wait_end(job_id) for job_id in refused]
        after = cluster.wait_end(order(cluster))

        assert {job["status"] for job in (*followed, after)} == {"completed"}
        assert {len(creates(cluster, job_id)) for job_id in under_way} == {1}
        # Only a 503 says that nothing was taken; of every other nobody knows, and nobody orders again.
        expected = "completed" if status == 503 else "ambiguous_submission"
        assert {job["error"]["code"] if job["error"] else job["status"] for job in late} == {expected}
        assert {len(cluster.paid(job_id)) for job_id in refused} == {int(status == 503)}

    @pytest.mark.slow
    def test_a_vendor_that_says_nothing_before_an_order_is_placed_leaves_no_doubt_about_it(
        self, cluster: Cluster
    ) -> None:
        cluster.proxies.vendor.fall_silent()

        # The worker has never asked what this model takes: that question comes first.
        job = cluster.wait_end(order(cluster, model="acme/not-asked-for-yet", max_attempts=1))
        cluster.heal()

        assert job["error"]["code"] == "attempts_exhausted"
        assert [placed["resolution"] for placed in job["submissions"]] == ["rejected"]
        assert creates(cluster, job["id"]) == []


class TestNeverEnds:
    @pytest.mark.slow
    def test_an_order_that_never_ends_is_canceled_at_the_jobs_deadline_and_paid_once(
        self, cluster: Cluster
    ) -> None:
        job_id = order(cluster, {"end": "never"}, deadline_seconds=30)
        cluster.wait_for(job_id, has_order)
        # Replicate's own deadline, which the order carries, is as far away: here Fleek comes first.
        cluster.query(
            "UPDATE jobs SET deadline_at = clock_timestamp() + interval '3 s' WHERE id = $1::uuid", job_id
        )
        cluster.workers[0].kill()
        cluster.workers[0].start()

        job = cluster.wait_end(job_id)

        [paid] = cluster.paid(job_id)
        assert (job["status"], job["error"]["code"]) == ("error", "deadline_passed")
        assert prediction(cluster, paid["id"])["status"] == "canceled"
        assert paid["headers"]["cancel-after"] in {"29s", "30s"}

    @pytest.mark.slow
    def test_an_order_that_never_ends_is_given_up_canceled_and_paid_once(self, cluster: Cluster) -> None:
        job = cluster.wait_end(order(cluster, {"end": "never"}, model=HASTY, max_attempts=2))

        [paid] = cluster.paid(job["id"])
        assert (job["error"]["code"], job["failures"]) == ("attempts_exhausted", 2)
        assert "took longer" in job["error"]["message"]
        assert prediction(cluster, paid["id"])["status"] == "canceled"

    def test_a_client_that_cancels_stops_the_order(self, cluster: Cluster) -> None:
        job_id = order(cluster, {"end": "never"})
        cluster.wait_for(job_id, has_order)
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
            slow({"file": "gzip"}),
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

    @pytest.mark.slow
    def test_a_file_that_is_broken_at_first_is_fetched_again_and_not_bought_again(
        self, cluster: Cluster
    ) -> None:
        cluster.vendor.on("file", times=2, file="truncated")

        job = cluster.wait_end(order(cluster))

        assert (job["status"], job["failures"]) == ("completed", 2)
        assert len(creates(cluster, job["id"])) == 1
        assert len(stored(cluster, job["id"])) == 1

    @pytest.mark.parametrize("file", ["huge", "endless"])
    def test_an_output_without_measure_is_cut_off_once(self, cluster: Cluster, file: str) -> None:
        job = cluster.wait_end(order(cluster, {"file": file, "size": 2_000_000}))

        assert job["error"]["code"] == "output_too_large"
        assert len(job["attempts"]) == 1
        assert len(creates(cluster, job["id"])) == 1
        assert stored(cluster, job["id"]) == []

    @pytest.mark.slow
    @pytest.mark.parametrize("change", ["expired", "lost"])
    def test_a_result_that_is_gone_when_its_job_is_resumed_is_told_and_not_bought_again(
        self, cluster: Cluster, change: str
    ) -> None:
        job_id = order(cluster, {"seconds": 3})
        cluster.wait_for(job_id, has_order)
        cluster.workers[0].kill()
        [paid] = cluster.paid(job_id)
        cluster.vendor.change(paid["id"], **{change: True})
        time.sleep(3)
        cluster.workers[0].start()

        job = cluster.wait_end(job_id)

        assert (job["status"], job["error"]["code"]) == ("error", "result_expired")
        assert job["error"]["retryable"] is False
        assert len(creates(cluster, job_id)) == 1
        assert stored(cluster, job_id) == []

    @pytest.mark.parametrize(
        ("rule", "code"),
        [
            ({"end": "failed", "error": "NSFW content detected"}, "content_refused"),
            ({"status": 422, "body": {"detail": "The prompt was flagged"}}, "content_refused"),
            ({"status": 422}, "provider_rejected_input"),
        ],
        ids=["by the model", "by the vendor", "as wrong"],
    )
    def test_a_refused_request_is_not_tried_again(
        self, cluster: Cluster, rule: dict[str, Any], code: str
    ) -> None:
        cluster.vendor.on("create", **rule)

        job = cluster.wait_end(order(cluster))

        assert (job["status"], job["error"]["code"], len(job["attempts"])) == ("error", code, 1)
        assert len(creates(cluster, job["id"])) == 1
        assert stored(cluster, job["id"]) == []


def prediction(cluster: Cluster, prediction_id: str) -> dict[str, Any]:
    """What the vendor says of an order."""
    headers = {"Authorization": f"Bearer {cluster.vendor.token}"}
    answer = httpx2.get(f"{cluster.vendor.origin}/v1/predictions/{prediction_id}", headers=headers)
    return dict(answer.raise_for_status().json())
