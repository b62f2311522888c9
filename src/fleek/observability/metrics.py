"""What a process counts, for Prometheus. `docs/reference/metrics.md` describes every name.

One `Metrics` a process, with a registry of its own, given to whoever has something to tell. What is told
here has happened: a change of a job is counted after its guarded statement moved the row, so what a
worker tries after it has lost the job is not counted at all.

Every label has few values. Names of models and queues are configuration; a model that only its provider
knows is counted as `undeclared`, whatever it is called.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fleek import __version__
from fleek.core.errors import ProviderErrorKind
from fleek.core.job import TERMINAL, ErrorCode, Reason, Status

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

UNDECLARED = "undeclared"
"""The label of every model that `fleek.toml` does not name."""
OPERATOR = "operator"
"""The label of every pause that a person asked for, whatever reason they gave."""
NO_ERROR = "none"

_WAIT = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
_RUN = (0.05, 0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800)
_JOB = (0.05, 0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 900, 3600, 14_400, 86_400)
_HTTP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """The end of an attempt, as it was committed."""

    provider: str
    model: str
    status: Status
    """The job's, after it."""
    outcome: Reason
    error_code: ErrorCode | None = None
    provider_error: ProviderErrorKind | None = None
    """What the provider said, where that is what ended the attempt."""
    resolutions: Sequence[str] = ()
    """Of the orders that ended with it."""
    has_paused: bool = False
    """Whether the model's lane was paused, or its pause made longer."""
    ran: timedelta | None = None
    """Since the claim; None where its worker is not there any more to say."""
    took: timedelta | None = None
    """Since the client asked; None as above."""
    stored_bytes: int = 0
    stored_objects: int = 0
    cost: float = 0.0
    """US dollars, as far as the provider said."""


class CacheResult(StrEnum):
    """Where a value came from that might have been remembered."""

    PROCESS = "process"
    """This process knew it."""
    SHARED = "shared"
    """Redis did."""
    MISS = "miss"
    """Nobody did: it was made."""
    UNAVAILABLE = "unavailable"
    """Redis could not be asked: it was made."""


class HttpMetrics:
    """Requests by method, route and class of status, with the children of each resolved once."""

    _METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "fleek_http_requests",
            "Requests that were answered, by the template of their route",
            ("method", "route", "status"),
            registry=registry,
        )
        self._duration = Histogram(
            "fleek_http_request_duration_seconds",
            "From a request's arrival to the begin of its answer",
            ("method", "route"),
            buckets=_HTTP,
            registry=registry,
        )
        in_progress = Gauge(
            "fleek_http_requests_in_progress", "Requests that are being answered", registry=registry
        )
        in_progress.set_function(lambda: self._in_progress)
        self._in_progress = 0
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def began(self) -> None:
        """A request has arrived. Called on one thread, like `ended`: a plain number needs no lock."""
        self._in_progress += 1

    def ended(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request is over; `status` is 0 where its client left before the answer began."""
        self._in_progress -= 1
        key = (method if method in self._METHODS else "other", route, status // 100)
        requests, duration = self._children.get(key) or self._resolve(key)
        requests.inc()
        duration.observe(seconds)

    def _resolve(self, key: tuple[str, str, int]) -> tuple[Counter, Histogram]:
        method, route, status = key
        found = (
            self._requests.labels(method, route, f"{status}xx" if status else "none"),
            self._duration.labels(method, route),
        )
        self._children[key] = found
        return found


class LostRecords(Collector):
    """Log records that are in no database, as who keeps them has counted."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count

    def describe(self) -> Iterable[Metric]:
        """The name, so that nobody else takes it."""
        return self.collect()

    def collect(self) -> Iterable[Metric]:
        """The count of this moment."""
        meaning = "Records that could not be stored in the database"
        return [CounterMetricFamily("fleek_log_records_dropped", meaning, value=self._count())]


class Metrics:
    """Everything that a process tells about itself; methods are named after what has happened."""

    def __init__(self, models: Iterable[str] = ()) -> None:
        """`models`: the declared ones."""
        # A time of creation beside every counter doubles the page, and no query of ours reads it.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's own omission
        self.registry = CollectorRegistry()
        self._models = frozenset(models)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        Info("fleek_build", "The version that runs", registry=self.registry).info({"version": __version__})
        self.http = HttpMetrics(self.registry)
        self._add_jobs()
        self._add_providers()
        self._add_work()

    def model_label(self, model: str) -> str:
        """How a model is called in labels."""
        return model if model in self._models else UNDECLARED

    def render(self) -> bytes:
        """The page that Prometheus reads, of `CONTENT_TYPE`: some milliseconds of work, and no I/O."""
        return generate_latest(self.registry)

    def job_accepted(self, queue: str, model: str) -> None:
        """A client's request made a job."""
        self._accepted.labels(queue, self.model_label(model), "new").inc()

    def job_retried(self, queue: str, model: str) -> None:
        """A client started a new chain of attempts for a job that had ended."""
        self._accepted.labels(queue, self.model_label(model), "retry").inc()

    def job_claimed(self, queue: str, model: str, waited: timedelta) -> None:
        """A worker took a job that had been due for so long."""
        self._wait.labels(queue, self.model_label(model)).observe(max(waited.total_seconds(), 0.0))

    def job_running(self, model: str) -> AbstractContextManager[object]:
        """Counts a job as in progress for the length of a block."""
        return self._in_progress.labels(self.model_label(model)).track_inprogress()

    def attempt_ended(self, end: AttemptEnd) -> None:
        """An attempt ended, and its job moved on."""
        provider, model = end.provider, self.model_label(end.model)
        code = end.error_code or NO_ERROR
        self._attempts.labels(provider, model, end.outcome, code).inc()
        if end.ran is not None:
            self._run.labels(provider, model).observe(end.ran.total_seconds())
        if end.provider_error is not None:
            self._provider_errors.labels(provider, end.provider_error).inc()
        if end.has_paused:
            self.lane_paused(provider, end.model, code)
        if 0 < end.cost < math.inf:  # Anybody may write a provider: a counter never gets over a NaN.
            self._cost.labels(provider, model).inc(end.cost)
        self._stored_bytes.inc(end.stored_bytes)
        self._stored_objects.inc(end.stored_objects)
        for resolution in end.resolutions:
            self.order_resolved(provider, resolution)
        if end.status in TERMINAL:
            self.job_ended(end.model, end.status, end.took)

    def job_ended(self, model: str, status: Status, took: timedelta | None = None) -> None:
        """A job came to an end, `took` after the client asked for it."""
        model = self.model_label(model)
        self._finished.labels(model, status).inc()
        if took is not None:
            self._duration.labels(model, status).observe(took.total_seconds())

    def order_placed(self, provider: str, model: str) -> None:
        """The intent to order something of a provider was written down."""
        self._orders.labels(provider, self.model_label(model)).inc()

    def order_resolved(self, provider: str, resolution: str) -> None:
        """It was written down how an order ended."""
        self._resolutions.labels(provider, resolution).inc()

    def lane_paused(self, provider: str, model: str, reason: str) -> None:
        """Nothing new of a model is claimed for a while: an error code, or `OPERATOR`."""
        self._pauses.labels(provider, self.model_label(model), reason).inc()

    def lease_rescued(self, *, is_wedged: bool) -> None:
        """A job was taken from a worker that did not renew, or (`is_wedged`) that never ended its attempt."""
        self._rescues.labels("wedged" if is_wedged else "expired").inc()

    def pruned(self, counts: Mapping[str, int]) -> None:
        """What is too old was deleted, so much of each kind."""
        for kind, count in counts.items():
            self._pruned.labels(kind).inc(count)

    def wake_up_received(self, queue: str) -> None:
        """A message brought this worker to a queue of its own."""
        self._wake_ups.labels(queue, "received").inc()

    def wake_up_published(self, queue: str, *, is_sent: bool) -> None:
        """A message for the workers of a queue went to the broker, or could not."""
        self._wake_ups.labels(queue, "sent" if is_sent else "failed").inc()

    def cache_asked(self, cache: str, result: CacheResult, count: int = 1) -> None:
        """Values were looked for in a cache."""
        self._cache_requests.labels(cache, result).inc(count)

    def show_slots(self, total: int, used: Callable[[], int]) -> None:
        """Let the page say how many jobs this worker could run, and how many it does."""
        slots = Gauge("fleek_worker_slots", "Jobs that this worker may run at once", registry=self.registry)
        slots.set(total)
        running = Gauge(
            "fleek_worker_slots_used", "Jobs that this worker runs at the moment", registry=self.registry
        )
        running.set_function(used)

    def _add_jobs(self) -> None:
        self._accepted = self._counter(
            "fleek_jobs_accepted", "Jobs that clients asked for, anew or again", "queue", "model", "kind"
        )
        self._finished = self._counter("fleek_jobs_finished", "Jobs that ended", "model", "status")
        # From zero: a series that begins with its first event hides it from `increase`.
        for model, status in itertools.product(sorted(self._models), TERMINAL):
            self._finished.labels(model, status)
        self._in_progress = Gauge(
            "fleek_jobs_in_progress", "Jobs that this worker runs", ("model",), registry=self.registry
        )
        self._wait = self._histogram(
            "fleek_job_wait_seconds", "From when a job was due to its claim", _WAIT, "queue", "model"
        )
        self._duration = self._histogram(
            "fleek_job_duration_seconds", "From the client's request to a job's end", _JOB, "model", "status"
        )
        self._attempts = self._counter(
            "fleek_attempts", "Attempts that ended", "provider", "model", "outcome", "error_code"
        )
        self._run = self._histogram(
            "fleek_attempt_duration_seconds", "From a claim to its end", _RUN, "provider", "model"
        )

    def _add_providers(self) -> None:
        self._provider_errors = self._counter(
            "fleek_provider_errors", "Attempts that a provider's error ended", "provider", "kind"
        )
        self._orders = self._counter("fleek_submissions", "Orders that were begun", "provider", "model")
        self._resolutions = self._counter(
            "fleek_submissions_resolved", "Orders, by how they ended", "provider", "resolution"
        )
        self._cost = self._counter(
            "fleek_submissions_cost_dollars", "What orders cost, where told", "provider", "model"
        )
        self._pauses = self._counter(
            "fleek_lane_pauses", "Pauses of a model, and extensions", "provider", "model", "reason"
        )

    def _add_work(self) -> None:
        self._rescues = self._counter("fleek_leases_rescued", "Jobs taken from lost workers", "cause")
        for cause in ("expired", "wedged"):
            self._rescues.labels(cause)
        self._stored_bytes = self._counter("fleek_storage_written_bytes", "Size of stored results")
        self._stored_objects = self._counter("fleek_storage_written_objects", "Results that were stored")
        self._pruned = self._counter("fleek_pruned", "What was deleted for its age", "kind")
        self._wake_ups = self._counter(
            "fleek_wake_ups", "Messages that bring workers to a queue", "queue", "event"
        )
        self._cache_requests = self._counter(
            "fleek_cache_requests", "Values looked for in a cache, by where they came from", "cache", "result"
        )

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, buckets=buckets, registry=self.registry)
