"""Floor 4: the composition root.

The only reader of Settings, and the only place that knows which adapter stands behind which port.
Everything is built once a process, here, and closed in reverse.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog
from sqlalchemy import MetaData

from fleek import failpoints
from fleek.core.cursor import CursorCodec
from fleek.core.errors import ConfigurationError, NotFound
from fleek.db.base import Base
from fleek.db.session import Database, PoolOptions
from fleek.events import models as _events  # noqa: F401  registers its tables
from fleek.jobs import models as _jobs  # noqa: F401  registers its tables
from fleek.jobs.caretakers import DeadlineWatcher, Rescuer
from fleek.jobs.claim import Claimer, ServedModel
from fleek.jobs.execution import Workshop
from fleek.jobs.keeper import LeaseKeeper
from fleek.jobs.lanes import Lanes
from fleek.jobs.orders import OrderLimits
from fleek.jobs.service import JobService
from fleek.jobs.waiting import Waiters
from fleek.logs import models as _logs  # noqa: F401  registers its tables
from fleek.media import models as _media  # noqa: F401  registers its tables
from fleek.media.images import ImageWorker
from fleek.media.service import MediaService
from fleek.media.variants import VariantMaker
from fleek.providers.base import Provider
from fleek.providers.registry import Catalog, Model, build_catalog, load_providers
from fleek.queue.base import Waker, describe_worker
from fleek.queue.celery_app import CeleryWaker, create_celery_app
from fleek.queue.pubsub import RedisPubSub
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


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a worker process works with."""

    worker: str
    catalog: Catalog
    claimer: Claimer
    keeper: LeaseKeeper
    rescuer: Rescuer
    deadlines: DeadlineWatcher
    waker: Waker
    pubsub: RedisPubSub
    workshop: Callable[[Callable[[timedelta], None]], Workshop]
    create_timeout: timedelta
    """How long an order may take to be placed."""


def load_metadata() -> MetaData:
    """Every table, for migrations."""
    return Base.metadata


@asynccontextmanager
async def open_api(settings: Settings) -> AsyncIterator[ApiContext]:
    """Build an api process's parts, start what runs in the background, and close all of it."""
    _warn_of_failpoints()
    async with AsyncExitStack() as stack:
        database = _open_database(stack, settings, "fleek api")
        signer = UrlSigner(load_secret(settings))
        storage = open_media_storage(settings, signer)
        images = ImageWorker(settings.variant_threads)
        stack.callback(images.close)
        pubsub = RedisPubSub(settings.resolved_redis_url)
        waker = _open_waker(stack, settings)
        catalog = await _open_catalog(stack, settings)
        cursors = CursorCodec(load_secret(settings))
        media = MediaService(
            database,
            storage,
            VariantMaker(storage, images),
            cursors,
            timedelta(seconds=settings.content_url_ttl),
        )
        waiters = Waiters(database, pubsub)
        await waiters.start()
        stack.push_async_callback(waiters.aclose)
        await pubsub.start()
        stack.push_async_callback(pubsub.aclose)
        jobs = JobService(database, catalog, waker, pubsub, cursors, media.delete_objects)
        lanes = Lanes(database, waker)
        yield ApiContext(settings, database, catalog, jobs, lanes, media, storage, signer, waiters, pubsub)


@asynccontextmanager
async def open_worker(settings: Settings) -> AsyncIterator[WorkerContext]:
    """Build a worker process's parts, and close them; the caller starts its loops."""
    _warn_of_failpoints()
    async with AsyncExitStack() as stack:
        database = _open_database(stack, settings, describe_worker(settings.queues))
        storage = open_media_storage(settings, UrlSigner(load_secret(settings)))
        images = ImageWorker(settings.variant_threads)
        stack.callback(images.close)
        pubsub = RedisPubSub(settings.resolved_redis_url)
        stack.push_async_callback(pubsub.aclose)
        waker = _open_waker(stack, settings)
        catalog = await _open_catalog(stack, settings)
        lease = timedelta(seconds=settings.lease)
        keeper = LeaseKeeper(database, lease=lease, interval=timedelta(seconds=settings.renew_interval))
        order_limits = OrderLimits(reconcile=timedelta(seconds=settings.reconcile_grace))
        worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"

        def workshop(on_due: Callable[[timedelta], None]) -> Workshop:
            return Workshop(
                database, storage, images, pubsub, keeper, settings.max_output_bytes, on_due, order_limits
            )

        yield WorkerContext(
            worker=worker,
            catalog=catalog,
            claimer=_build_claimer(database, catalog, worker, lease),
            keeper=keeper,
            rescuer=Rescuer(
                database,
                waker,
                pubsub,
                provider_of=lambda model: _provider_name(catalog, model),
                confirm_after=settings.rescue_confirm_after,
            ),
            deadlines=DeadlineWatcher(database, pubsub),
            waker=waker,
            pubsub=pubsub,
            workshop=workshop,
            create_timeout=order_limits.create,
        )


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
    draft = path.with_name(f"{path.name}.{os.getpid()}")
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


def _open_waker(stack: AsyncExitStack, settings: Settings) -> Waker:
    waker = CeleryWaker(create_celery_app(settings.resolved_redis_url, settings.queues))
    # It waits for its thread, which may wait for the broker.
    stack.push_async_callback(asyncio.to_thread, waker.close)
    return waker


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


def _build_claimer(database: Database, catalog: Catalog, worker: str, lease: timedelta) -> Claimer:
    def serve(name: str) -> ServedModel | None:
        model = _find(catalog, name)
        return None if model is None else _to_served(model)

    return Claimer(
        database,
        worker=worker,
        lease=lease,
        models=[_to_served(model) for model in catalog.all()],
        serve=serve if catalog.is_open else None,
    )


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
