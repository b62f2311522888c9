"""The state of the queue as metrics: what PostgreSQL said last, beside what the process counts itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class Waiting:
    """Jobs of one model that wait in one queue."""

    queue: str
    model: str
    due: int
    """A worker may claim them now."""
    scheduled: int
    """They are due later: a retry, or a deferral."""
    oldest_seconds: float | None
    """For how long the first of those that are due has been so; None where none is."""


@dataclass(frozen=True, slots=True)
class Running:
    """Jobs of one model in one queue that a worker runs."""

    queue: str
    model: str
    jobs: int


@dataclass(frozen=True, slots=True)
class PausedLane:
    """A model of which nothing new is claimed."""

    provider: str
    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """The queue at one moment."""

    waiting: Sequence[Waiting] = ()
    running: Sequence[Running] = ()
    pauses: Sequence[PausedLane] = ()
    overdue_leases: int = 0
    ambiguous: int = 0


class QueueCollector(Collector):
    """Puts the last figures on the page. While there are none, only that the database is away."""

    def __init__(self, model_label: Callable[[str], str]) -> None:
        self._label = model_label
        self.figures: QueueFigures | None = None
        """Replaced as a whole, so that a page is of one moment. None: the database did not answer."""

    def describe(self) -> Iterable[Metric]:
        """The names, so that nobody else takes them."""
        return [*self._families(QueueFigures()), _up(is_up=True)]

    def collect(self) -> Iterator[Metric]:
        """The figures as gauges."""
        figures = self.figures
        yield _up(is_up=figures is not None)
        if figures is not None:
            yield from self._families(figures)

    def _families(self, figures: QueueFigures) -> Iterator[Metric]:
        yield self._jobs(figures)
        yield self._oldest(figures)
        yield self._pauses(figures)
        yield GaugeMetricFamily(
            "fleek_leases_overdue", "Running jobs whose worker did not renew in time", figures.overdue_leases
        )
        yield GaugeMetricFamily(
            "fleek_jobs_ambiguous",
            "Jobs that ended in the last 7 days and may have been paid for without a result",
            figures.ambiguous,
        )

    def _jobs(self, figures: QueueFigures) -> Metric:
        family = GaugeMetricFamily(
            "fleek_queue_jobs", "Jobs that have not ended", labels=("queue", "model", "state")
        )
        jobs: Counter[tuple[str, str, str]] = Counter()
        for one in figures.waiting:
            jobs[one.queue, self._label(one.model), "due"] += one.due
            jobs[one.queue, self._label(one.model), "scheduled"] += one.scheduled
        for running in figures.running:
            jobs[running.queue, self._label(running.model), "processing"] += running.jobs
        for labels, count in sorted(jobs.items()):
            family.add_metric(labels, count)
        return family

    def _oldest(self, figures: QueueFigures) -> Metric:
        family = GaugeMetricFamily(
            "fleek_queue_oldest_age_seconds",
            "For how long the oldest due job has been due",
            labels=("queue", "model"),
        )
        ages: dict[tuple[str, str], float] = {}
        for one in figures.waiting:
            key = one.queue, self._label(one.model)
            ages[key] = max(ages.get(key, 0.0), one.oldest_seconds or 0.0)
        for labels, age in sorted(ages.items()):
            family.add_metric(labels, age)
        return family

    def _pauses(self, figures: QueueFigures) -> Metric:
        family = GaugeMetricFamily(
            "fleek_lane_paused",
            "1 while nothing new of a model is claimed",
            labels=("provider", "model", "reason"),
        )
        pauses = {(one.provider, self._label(one.model), one.reason) for one in figures.pauses}
        for labels in sorted(pauses):
            family.add_metric(labels, 1)
        return family


def _up(*, is_up: bool) -> Metric:
    return GaugeMetricFamily("fleek_database_up", "1 while PostgreSQL answers, and is migrated", int(is_up))
