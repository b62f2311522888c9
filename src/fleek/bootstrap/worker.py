"""What a worker process works with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from fleek import __version__
from fleek.bootstrap.parts import Ground, open_ground
from fleek.bootstrap.pruning import build_prune_tools
from fleek.core.errors import NotFound
from fleek.db.schema import Schema
from fleek.db.session import Database
from fleek.jobs.caretakers import DeadlineWatcher, Rescuer
from fleek.jobs.claim import Claimer, ServedModel
from fleek.jobs.execution import Workshop
from fleek.jobs.keeper import LeaseKeeper
from fleek.jobs.orders import OrderLimits
from fleek.jobs.pruner import Pruner
from fleek.observability.metrics import Metrics
from fleek.providers.registry import Catalog, Model
from fleek.queue.base import Presence, Waker, describe_worker
from fleek.queue.pubsub import RedisPubSub
from fleek.queue.round_trip import Responder
from fleek.settings import Settings


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a worker process works with."""

    worker: str
    schema: Schema
    catalog: Catalog
    claimer: Claimer
    keeper: LeaseKeeper
    rescuer: Rescuer
    deadlines: DeadlineWatcher
    pruner: Pruner
    waker: Waker
    pubsub: RedisPubSub
    workshop: Callable[[Callable[[timedelta], None]], Workshop]
    create_timeout: timedelta
    """How long an order may take to be placed."""
    responder: Callable[[Callable[[], bool]], Responder]
    """Answers pings, given what says whether this process claims."""
    metrics: Metrics


@asynccontextmanager
async def open_worker(settings: Settings, metrics: Metrics) -> AsyncIterator[WorkerContext]:
    """Build a worker process's parts, and close them; the caller starts its loops."""
    async with AsyncExitStack() as stack:
        ground = await open_ground(stack, settings, metrics, describe_worker(settings.queues))
        stack.push_async_callback(ground.pubsub.aclose)
        lease = timedelta(seconds=settings.lease)
        interval = timedelta(seconds=settings.renew_interval)
        keeper = LeaseKeeper(ground.database, lease=lease, interval=interval)
        limits = OrderLimits(reconcile=timedelta(seconds=settings.reconcile_grace))
        yield WorkerContext(
            worker=ground.process,
            schema=ground.schema,
            catalog=ground.catalog,
            claimer=build_claimer(ground.database, ground.catalog, ground.process, lease, metrics),
            keeper=keeper,
            rescuer=_build_rescuer(settings, ground, metrics),
            deadlines=DeadlineWatcher(ground.database, ground.pubsub, metrics=metrics),
            pruner=build_prune_tools(settings, ground.database, ground.storage, ground.process).pruner,
            waker=ground.waker,
            pubsub=ground.pubsub,
            workshop=_workshops(settings, ground, keeper, limits, metrics),
            create_timeout=limits.create,
            responder=_responders(settings, ground.process),
            metrics=metrics,
        )


def build_claimer(
    database: Database, catalog: Catalog, worker: str, lease: timedelta, metrics: Metrics
) -> Claimer:
    """Claims jobs of the catalog's models, of those too that an open provider has without a declaration."""

    def serve(name: str) -> ServedModel | None:
        model = _find(catalog, name)
        return None if model is None else _to_served(model)

    return Claimer(
        database,
        worker=worker,
        lease=lease,
        models=[_to_served(model) for model in catalog.all()],
        serve=serve if catalog.is_open else None,
        metrics=metrics,
    )


def provider_name(catalog: Catalog, name: str) -> str:
    """A job may outlive its model's configuration: then only its lane has no name."""
    model = _find(catalog, name)
    return "" if model is None else model.provider.name


def _build_rescuer(settings: Settings, ground: Ground, metrics: Metrics) -> Rescuer:
    return Rescuer(
        ground.database,
        ground.waker,
        ground.pubsub,
        provider_of=lambda model: provider_name(ground.catalog, model),
        confirm_after=settings.rescue_confirm_after,
        metrics=metrics,
    )


def _workshops(
    settings: Settings, ground: Ground, keeper: LeaseKeeper, limits: OrderLimits, metrics: Metrics
) -> Callable[[Callable[[timedelta], None]], Workshop]:
    """Makes workshops, each with its own way to tell when a job will be due again."""

    def workshop(on_due: Callable[[timedelta], None]) -> Workshop:
        return Workshop(
            ground.database,
            ground.storage,
            ground.images,
            ground.pubsub,
            keeper,
            settings.max_output_bytes,
            on_due,
            limits,
            media_ttl=settings.media_ttl,
            log_prompts=settings.log_prompts,
            metrics=metrics,
        )

    return workshop


def _responders(settings: Settings, worker: str) -> Callable[[Callable[[], bool]], Responder]:
    def responder(is_ready: Callable[[], bool]) -> Responder:
        def describe() -> Presence:
            return Presence(worker, settings.queues, __version__, is_ready())

        return Responder(settings.resolved_redis_url, describe)

    return responder


def _to_served(model: Model) -> ServedModel:
    return ServedModel(model.name, model.provider.name, model.attempt_timeout, model.max_concurrency)


def _find(catalog: Catalog, name: str) -> Model | None:
    try:
        return catalog.get(name)
    except NotFound:
        return None
