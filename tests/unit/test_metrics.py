"""What is counted, as Prometheus reads it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from tests.scraping import parse, scrape

from fleek import __version__
from fleek.core.job import Reason, Status
from fleek.observability.metrics import UNDECLARED, AttemptEnd, HttpMetrics, Metrics
from fleek.observability.queue_metrics import QueueCollector, QueueFigures, Running, Waiting


def test_a_process_says_what_it_is() -> None:
    page = scrape(Metrics())

    assert page.value("fleek_build_info", version=__version__) == 1
    assert {"python_info", "process_cpu_seconds_total", "process_open_fds"} <= page.names()


def test_two_processes_in_one_count_apart() -> None:
    first, second = Metrics(["m"]), Metrics(["m"])

    first.job_accepted("default", "m")

    assert scrape(first).series("fleek_jobs_accepted_total")
    assert not scrape(second).series("fleek_jobs_accepted_total")


def test_whatever_clients_call_a_model_it_has_one_label_unless_it_is_declared() -> None:
    metrics = Metrics(["flux"])

    for model in ("flux", *(f"someone/model-{number}" for number in range(100))):
        metrics.job_accepted("default", model)
        metrics.job_claimed("default", model, timedelta(0))
        metrics.order_placed("replicate", model)
        metrics.lane_paused("replicate", model, "throttled")
        end = AttemptEnd("replicate", model, Status.COMPLETED, Reason.COMPLETED, ran=timedelta(1), cost=0.5)
        metrics.attempt_ended(end)

    page = scrape(metrics)
    labels = {value for name, found in page.samples for key, value in found if key == "model"}
    assert labels == {"flux", UNDECLARED}
    assert page.value("fleek_jobs_finished_total", model=UNDECLARED, status="completed") == 100


def test_whatever_method_a_client_sends_the_series_are_few() -> None:
    registry = CollectorRegistry()
    http = HttpMetrics(registry)

    for number in range(200):
        http.began()
        http.ended(f"METHOD{number}", "unmatched", 405, 0.001)

    page = parse(generate_latest(registry).decode())
    assert page.series("fleek_http_requests_total") == {("other", "unmatched", "4xx"): 200}


def test_a_request_whose_client_left_before_the_answer_has_no_class_of_status() -> None:
    metrics = Metrics()

    metrics.http.began()
    metrics.http.ended("GET", "/livez", 0, 3.0)

    assert scrape(metrics).series("fleek_http_requests_total") == {("GET", "/livez", "none"): 1}


@pytest.mark.parametrize("waited", [timedelta(seconds=-3), timedelta(0)])
def test_a_wait_is_never_below_nothing(waited: timedelta) -> None:
    metrics = Metrics(["m"])

    metrics.job_claimed("default", "m", waited)

    assert scrape(metrics).value("fleek_job_wait_seconds_sum", queue="default", model="m") == 0


def test_jobs_of_models_that_share_a_label_are_added_and_the_oldest_of_them_counts() -> None:
    metrics = Metrics()
    collector = QueueCollector(metrics.model_label)
    metrics.registry.register(collector)
    collector.figures = QueueFigures(
        waiting=[Waiting("q", "a", 1, 2, 5.0), Waiting("q", "b", 3, 4, 50.0), Waiting("q", "c", 0, 1, None)],
        running=[Running("q", "a", 6), Running("q", "b", 7)],
    )

    page = scrape(metrics)

    assert page.series("fleek_queue_jobs") == {
        (UNDECLARED, "q", "due"): 4,
        (UNDECLARED, "q", "scheduled"): 7,
        (UNDECLARED, "q", "processing"): 13,
    }
    assert page.series("fleek_queue_oldest_age_seconds") == {(UNDECLARED, "q"): 50}


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -1.0])
def test_a_cost_that_is_none_is_left_out(nonsense: float) -> None:
    metrics = Metrics(["m"])

    for cost in (0.25, nonsense, 0.5):
        metrics.attempt_ended(AttemptEnd("p", "m", Status.COMPLETED, Reason.COMPLETED, cost=cost))

    page = scrape(metrics)
    assert page.value("fleek_submissions_cost_dollars_total", provider="p", model="m") == 0.75
    assert page.value("fleek_jobs_finished_total", model="m", status="completed") == 3


def test_what_was_pruned_is_added_up_by_kind() -> None:
    metrics = Metrics()

    metrics.pruned({"expired": 2, "jobs": 0})
    metrics.pruned({"expired": 3, "jobs": 1})

    assert scrape(metrics).series("fleek_pruned_total") == {("expired",): 5, ("jobs",): 1}


def test_slots_are_those_of_the_moment() -> None:
    metrics, running = Metrics(), [1, 2]
    metrics.show_slots(64, lambda: len(running))

    running.append(3)

    assert scrape(metrics).value("fleek_worker_slots_used") == 3
    assert scrape(metrics).value("fleek_worker_slots") == 64
