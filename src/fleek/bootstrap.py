"""Floor 4: the composition root.

The only reader of Settings, and the only place that knows which adapter stands behind which port.
Everything is built once a process, here, and closed in reverse.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from celery import Celery
from prometheus_client.registry import Collector
from sqlalchemy import MetaData

from fleek import __version__, failpoints
from fleek.core.cursor import CursorCodec
from fleek.core.errors import ConfigurationError, NotFound
from fleek.db.base import Base
from fleek.db.revisions import shipped_revisions
from fleek.db.schema import Schema
from fleek.db.session import Database, PoolOptions
from fleek.events import models as _events  # noqa: F401  registers its tables
from fleek.jobs import models as _jobs  # noqa: F401  registers its tables
from fleek.jobs.caretakers import DeadlineWatcher, Rescuer
from fleek.jobs.claim import Claimer, ServedModel
from fleek.jobs.execution import Workshop
from fleek.jobs.figures import QueueWatch
from fleek.jobs.keeper import LeaseKeeper
from fleek.jobs.lanes import Lanes
from fleek.jobs.orders import OrderLimits
from fleek.jobs.orphans import OrphanFinder, OrphanRules
from fleek.jobs.pruner import Pruner
from fleek.jobs.service import JobService
from fleek.jobs.waiting import Waiters
from fleek.logs import models as _logs, repository as log_entries  # noqa: F401  registers its tables
from fleek.logs.service import LogService
from fleek.logs.sink import stored_records
from fleek.media import models as _media  # noqa: F401  registers its tables
from fleek.media.images import ImageWorker
from fleek.media.service import MediaService
from fleek.media.signing import SignedUrls
from fleek.media.variants import VariantMaker
from fleek.observability.metrics import LostRecords, Metrics
from fleek.observability.queue_metrics import QueueCollector
from fleek.observability.redaction import Redactor, known_secrets
from fleek.providers.base import Provider
from fleek.providers.registry import DEMO, Catalog, Model, build_catalog, load_providers
from fleek.queue.base import DEFAULT_QUEUE, Presence, Waker, describe_worker
from fleek.queue.cache import RedisCache
from fleek.queue.celery_app import CeleryWaker, create_celery_app, publish_ping
from fleek.queue.pubsub import RedisPubSub
from fleek.queue.round_trip import Responder, RoundTrips
from fleek.settings import Settings
from fleek.storage.base import ObjectStorage
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner

_log = structlog.get_logger(__name__)

_SECRET_BYTES = 32
_MIN_SECRET = 16
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ApiContext:
    """What an api process works with."""

    settings: Settings
    database: Database
    catalog: Catalog
    jobs: JobService
    lanes: Lanes
    media: MediaService
    storage: ObjectStorage
    signer: UrlSigner
    waiters: Waiters
    pubsub: RedisPubSub
    schema: Schema
    round_trips: RoundTrips
    metrics: Metrics
    queue_watch: QueueWatch
    logs: LogService


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


@dataclass(frozen=True, slots=True)
class PruneTools:
    """What deletes by age, for a worker and for the command that does it by hand."""

    database: Database
    orphans: OrphanFinder
    pruner: Pruner


def load_metadata() -> MetaData:
    """Every table, for migrations."""
    return Base.metadata


@asynccontextmanager
async def open_api(settings: Settings, metrics: Metrics) -> AsyncIterator[ApiContext]:
    """Build an api process's parts, start what runs in the background, and close all of it."""
    _warn_of_failpoints()
    async with AsyncExitStack() as stack:
        database = _open_database(stack, settings, "fleek api")
        schema = await _open_schema(settings, database)
        await _open_log_store(stack, settings, database, _name_process(), metrics)
        signer = UrlSigner(load_secret(settings))
        storage = open_media_storage(settings, signer)
        images = ImageWorker(settings.variant_threads)
        stack.callback(images.close)
        pubsub = RedisPubSub(settings.resolved_redis_url)
        celery = create_celery_app(settings.resolved_redis_url, settings.queues)
        waker = _open_waker(stack, celery, metrics)
        catalog = await _open_catalog(stack, settings)
        cursors = CursorCodec(load_secret(settings))
        signed_urls = await _open_signed_urls(stack, settings, storage, metrics)
        media = MediaService(database, storage, VariantMaker(storage, images), cursors, signed_urls)
        waiters = Waiters(database, pubsub)
        await waiters.start()
        stack.push_async_callback(waiters.aclose)
        await pubsub.start()
        stack.push_async_callback(pubsub.aclose)
        jobs = JobService(database, catalog, waker, pubsub, cursors, media.delete_objects, metrics)
        lanes = Lanes(database, waker, metrics=metrics)
        round_trips = RoundTrips(
            settings.resolved_redis_url, partial(publish_ping, celery), _queues_in_use(catalog)
        )
        stack.push_async_callback(round_trips.aclose)
        _run_beside(stack, schema.until_usable())
        yield ApiContext(
            settings,
            database,
            catalog,
            jobs,
            lanes,
            media,
            storage,
            signer,
            waiters,
            pubsub,
            schema,
            round_trips,
            metrics,
            _open_queue_watch(stack, database, metrics),
            LogService(database),
        )


@asynccontextmanager
async def open_worker(settings: Settings, metrics: Metrics) -> AsyncIterator[WorkerContext]:
    """Build a worker process's parts, and close them; the caller starts its loops."""
    _warn_of_failpoints()
    async with AsyncExitStack() as stack:
        database = _open_database(stack, settings, describe_worker(settings.queues))
        schema = await _open_schema(settings, database)
        worker = _name_process()
        await _open_log_store(stack, settings, database, worker, metrics)
        storage = open_media_storage(settings, UrlSigner(load_secret(settings)))
        images = ImageWorker(settings.variant_threads)
        stack.callback(images.close)
        pubsub = RedisPubSub(settings.resolved_redis_url)
        stack.push_async_callback(pubsub.aclose)
        waker = _open_waker(stack, create_celery_app(settings.resolved_redis_url, settings.queues), metrics)
        catalog = await _open_catalog(stack, settings)
        lease = timedelta(seconds=settings.lease)
        keeper = LeaseKeeper(database, lease=lease, interval=timedelta(seconds=settings.renew_interval))
        order_limits = OrderLimits(reconcile=timedelta(seconds=settings.reconcile_grace))

        def workshop(on_due: Callable[[timedelta], None]) -> Workshop:
            return Workshop(
                database,
                storage,
                images,
                pubsub,
                keeper,
                settings.max_output_bytes,
                on_due,
                order_limits,
                media_ttl=settings.media_ttl,
                log_prompts=settings.log_prompts,
                metrics=metrics,
            )

        def responder(is_ready: Callable[[], bool]) -> Responder:
            def describe() -> Presence:
                return Presence(worker, settings.queues, __version__, is_ready())

            return Responder(settings.resolved_redis_url, describe)

        yield WorkerContext(
            worker=worker,
            schema=schema,
            catalog=catalog,
            claimer=_build_claimer(database, catalog, worker, lease, metrics),
            keeper=keeper,
            rescuer=Rescuer(
                database,
                waker,
                pubsub,
                provider_of=lambda model: _provider_name(catalog, model),
                confirm_after=settings.rescue_confirm_after,
                metrics=metrics,
            ),
            deadlines=DeadlineWatcher(database, pubsub, metrics=metrics),
            pruner=_build_prune_tools(settings, database, storage, worker).pruner,
            waker=waker,
            pubsub=pubsub,
            workshop=workshop,
            create_timeout=order_limits.create,
            responder=responder,
            metrics=metrics,
        )


@asynccontextmanager
async def open_prune_tools(settings: Settings, statement_timeout: float) -> AsyncIterator[PruneTools]:
    """For a process that only prunes; it counts too, which takes longer than other statements may (s)."""
    async with AsyncExitStack() as stack:
        patient = settings.model_copy(update={"database_statement_timeout": statement_timeout})
        database = _open_database(stack, patient, "fleek prune")
        await _open_schema(settings, database)
        storage = open_media_storage(settings, UrlSigner(load_secret(settings)))
        yield _build_prune_tools(settings, database, storage, _name_process())


def build_metrics(settings: Settings) -> Metrics:
    """What one process counts with; the names of its models are the declared ones."""
    return Metrics([*settings.models, DEMO])


def open_media_storage(settings: Settings, signer: UrlSigner) -> ObjectStorage:
    """The configured object store."""
    return open_storage(
        settings.resolved_storage_url,
        signer=signer,
        endpoint=settings.storage_endpoint,
        public_endpoint=settings.storage_public_endpoint,
        region=settings.storage_region,
        path_style=settings.storage_path_style,
    )


def build_redactor(settings: Settings) -> Redactor:
    """Knows every secret that this process knows."""
    secret = b""
    with suppress(ConfigurationError):  # Whoever needs the key says what is wrong with it.
        secret = load_secret(settings)
    return Redactor({*known_secrets(settings, os.environ), secret.decode(errors="replace")})


def load_secret(settings: Settings) -> bytes:
    """The signing key: configured, or generated once into the home with mode 600.

    Several processes may start at once; all of them end up with the one that was linked first.
    """
    if settings.secret_key is not None:
        secret = settings.secret_key.get_secret_value().encode()
        if len(secret) < _MIN_SECRET:
            message = (
                f"FLEEK_SECRET_KEY: at least {_MIN_SECRET} characters, such as `openssl rand -hex 32` gives"
            )
            raise ConfigurationError(message)
        return secret
    path = settings.local.secret_key_file
    try:
        if not path.exists():
            _generate_secret(path)
        return path.read_bytes().strip()
    except OSError as error:
        message = f"FLEEK_HOME: cannot keep a secret key at {path}: {error.strerror}; set FLEEK_SECRET_KEY"
        raise ConfigurationError(message) from error


def _generate_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # No process id in the name: in containers that share the folder every process has the same one.
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(_SECRET_BYTES) + "\n")
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _warn_of_failpoints() -> None:
    """A process that was told to die somewhere must not look like any other."""
    if failpoints.is_armed():
        _log.warning("failpoints_armed", variable=failpoints.VARIABLE)


def _open_database(stack: AsyncExitStack, settings: Settings, application: str) -> Database:
    options = PoolOptions(
        size=settings.database_pool_size,
        max_overflow=settings.database_max_overflow,
        recycle=settings.database_pool_recycle,
        pool_timeout=settings.database_pool_timeout,
        connect_timeout=settings.database_connect_timeout,
        statement_timeout=settings.database_statement_timeout,
        lock_timeout=settings.database_lock_timeout,
        idle_in_transaction_timeout=settings.database_idle_in_transaction_timeout,
    )
    database = Database(settings.resolved_database_url, options, application=application)
    stack.push_async_callback(database.aclose)
    return database


async def _open_signed_urls(
    stack: AsyncExitStack, settings: Settings, storage: ObjectStorage, metrics: Metrics
) -> SignedUrls:
    """With the cache that api processes share, where they are to."""
    reuse, ttl = settings.content_url_reuse, timedelta(seconds=settings.content_url_ttl)
    cache = None
    if reuse == "shared":
        # URLs of another bucket or endpoint are none of ours: the seal tells them apart.
        place = (settings.resolved_storage_url, settings.storage_endpoint, settings.storage_public_endpoint)
        secret = hmac.digest(load_secret(settings), repr(place).encode(), "sha256")
        cache = RedisCache(settings.resolved_redis_url, secret)
        await cache.start()
        stack.push_async_callback(cache.aclose)
    return SignedUrls(storage, ttl, cache, metrics, is_reusing=reuse != "off")


async def _open_schema(settings: Settings, database: Database) -> Schema:
    """Raises ConfigurationError where the schema is too old to begin with."""
    schema = Schema(database, shipped_revisions(), may_wait=settings.wait_for_schema)
    await schema.check()
    return schema


def _run_beside(stack: AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` in the background until it ends, or the stack is closed."""
    task = asyncio.create_task(work)
    stack.callback(task.cancel)


def _queues_in_use(catalog: Catalog) -> list[str]:
    """The queues that jobs of the catalog's models wait in."""
    queues = {model.queue for model in catalog.all()}
    return sorted(queues | {DEFAULT_QUEUE} if catalog.is_open or not queues else queues)


def _open_waker(stack: AsyncExitStack, celery: Celery, metrics: Metrics) -> Waker:
    waker = CeleryWaker(celery, lambda queue, is_sent: metrics.wake_up_published(queue, is_sent=is_sent))
    # It waits for its thread, which may wait for the broker.
    stack.push_async_callback(asyncio.to_thread, waker.close)
    return waker


async def _open_log_store(
    stack: AsyncExitStack, settings: Settings, database: Database, process: str, metrics: Metrics
) -> None:
    sink = await stack.enter_async_context(stored_records(database, process, build_redactor(settings)))
    _show(stack, metrics, LostRecords(lambda: sink.lost))


def _open_queue_watch(stack: AsyncExitStack, database: Database, metrics: Metrics) -> QueueWatch:
    """Puts the queue's figures among what the process counts itself."""
    collector = QueueCollector(metrics.model_label)
    _show(stack, metrics, collector)
    return QueueWatch(database, collector)


def _show(stack: AsyncExitStack, metrics: Metrics, collector: Collector) -> None:
    """On the page of metrics, until the stack is closed: then nobody has figures any more."""
    metrics.registry.register(collector)
    stack.callback(metrics.registry.unregister, collector)


async def _open_catalog(stack: AsyncExitStack, settings: Settings) -> Catalog:
    loaded = load_providers(settings.providers)
    for provider in loaded.providers.values():
        stack.push_async_callback(_close, provider)
    return build_catalog(settings.models, loaded.providers, loaded.unavailable)


async def _close(provider: Provider, within: float = _CLOSE_SECONDS) -> None:
    """Anybody may write a provider: one that fails at its end, or has none, does not keep the process."""
    try:
        async with asyncio.timeout(within):
            await provider.aclose()
    except Exception as error:  # noqa: BLE001  see above
        _log.warning("provider_close_failed", provider=provider.name, error=type(error).__name__)


def _build_claimer(
    database: Database, catalog: Catalog, worker: str, lease: timedelta, metrics: Metrics
) -> Claimer:
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


def _build_prune_tools(
    settings: Settings, database: Database, storage: ObjectStorage, process: str
) -> PruneTools:
    rules = OrphanRules(settings.orphan_age, settings.orphan_interval)
    orphans = OrphanFinder(database, storage, rules, walker=process)
    pruner = Pruner(
        database,
        storage,
        orphans,
        job_retention=settings.job_retention,
        prune_logs=partial(log_entries.prune, database, settings.log_retention),
    )
    return PruneTools(database, orphans, pruner)


def _name_process() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def _to_served(model: Model) -> ServedModel:
    return ServedModel(model.name, model.provider.name, model.attempt_timeout, model.max_concurrency)


def _provider_name(catalog: Catalog, name: str) -> str:
    """A job may outlive its model's configuration: then only its lane has no name."""
    model = _find(catalog, name)
    return "" if model is None else model.provider.name


def _find(catalog: Catalog, name: str) -> Model | None:
    try:
        return catalog.get(name)
    except NotFound:
        return None
