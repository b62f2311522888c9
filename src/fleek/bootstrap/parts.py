"""What several kinds of processes are built from."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import structlog
from celery import Celery
from prometheus_client.registry import Collector

from fleek import failpoints
from fleek.bootstrap.secret_key import load_secret
from fleek.core.errors import ConfigurationError
from fleek.db.revisions import shipped_revisions
from fleek.db.schema import Schema
from fleek.db.session import Database, PoolOptions
from fleek.logs.sink import stored_records
from fleek.media.images import ImageWorker
from fleek.observability.metrics import LostRecords, Metrics
from fleek.observability.redaction import Redactor, known_secrets
from fleek.providers.base import Provider
from fleek.providers.registry import DEMO, Catalog, build_catalog, load_providers
from fleek.queue.base import Waker
from fleek.queue.celery_app import CeleryWaker, create_celery_app
from fleek.queue.pubsub import RedisPubSub
from fleek.settings import Settings
from fleek.storage.base import ObjectStorage
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner

_log = structlog.get_logger(__name__)

_CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Ground:
    """What an api and a worker both stand on."""

    process: str
    """The name of this process, which no other has."""
    database: Database
    schema: Schema
    signer: UrlSigner
    storage: ObjectStorage
    images: ImageWorker
    pubsub: RedisPubSub
    """Neither started nor to be closed: whoever starts it says when it ends."""
    celery: Celery
    waker: Waker
    catalog: Catalog


async def open_ground(
    stack: AsyncExitStack, settings: Settings, metrics: Metrics, application: str
) -> Ground:
    """Build it; what has to be closed is closed with the stack."""
    _warn_of_failpoints()
    process = name_process()
    database = open_database(stack, settings, application)
    schema = await open_schema(settings, database)
    await _open_log_store(stack, settings, database, process, metrics)
    signer = UrlSigner(load_secret(settings))
    images = ImageWorker(settings.variant_threads)
    stack.callback(images.close)
    celery = create_celery_app(settings.resolved_redis_url, settings.queues)
    return Ground(
        process=process,
        database=database,
        schema=schema,
        signer=signer,
        storage=open_media_storage(settings, signer),
        images=images,
        pubsub=RedisPubSub(settings.resolved_redis_url),
        celery=celery,
        waker=open_waker(stack, celery, metrics),
        catalog=await _open_catalog(stack, settings),
    )


def name_process() -> str:
    """Host, number and a few letters of chance."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def build_metrics(settings: Settings) -> Metrics:
    """What one process counts with; the names of its models are the declared ones."""
    return Metrics([*settings.models, DEMO])


def build_redactor(settings: Settings) -> Redactor:
    """Knows every secret that this process knows."""
    secret = b""
    with suppress(ConfigurationError):  # Whoever needs the key says what is wrong with it.
        secret = load_secret(settings)
    return Redactor({*known_secrets(settings, os.environ), secret.decode(errors="replace")})


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


def open_database(stack: AsyncExitStack, settings: Settings, application: str) -> Database:
    """The pool of a process; PostgreSQL shows `application` beside each of its connections."""
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


async def open_schema(settings: Settings, database: Database) -> Schema:
    """Raises ConfigurationError where the schema is too old to begin with."""
    schema = Schema(database, shipped_revisions(), may_wait=settings.wait_for_schema)
    await schema.check()
    return schema


def open_waker(stack: AsyncExitStack, celery: Celery, metrics: Metrics) -> Waker:
    """Publishes wake-ups, and counts them."""
    waker = CeleryWaker(celery, lambda queue, is_sent: metrics.wake_up_published(queue, is_sent=is_sent))
    # It waits for its thread, which may wait for the broker.
    stack.push_async_callback(asyncio.to_thread, waker.close)
    return waker


def show(stack: AsyncExitStack, metrics: Metrics, collector: Collector) -> None:
    """Put figures on the page of metrics, until the stack is closed: then nobody has them any more."""
    metrics.registry.register(collector)
    stack.callback(metrics.registry.unregister, collector)


async def close_provider(provider: Provider, within: float = _CLOSE_SECONDS) -> None:
    """Anybody may write a provider: one that fails at its end, or has none, does not keep the process."""
    try:
        async with asyncio.timeout(within):
            await provider.aclose()
    except Exception as error:  # noqa: BLE001  see above
        _log.warning("provider_close_failed", provider=provider.name, error=type(error).__name__)


def _warn_of_failpoints() -> None:
    """A process that was told to die somewhere must not look like any other."""
    if failpoints.is_armed():
        _log.warning("failpoints_armed", variable=failpoints.VARIABLE)


async def _open_log_store(
    stack: AsyncExitStack, settings: Settings, database: Database, process: str, metrics: Metrics
) -> None:
    sink = await stack.enter_async_context(stored_records(database, process, build_redactor(settings)))
    show(stack, metrics, LostRecords(lambda: sink.lost))


async def _open_catalog(stack: AsyncExitStack, settings: Settings) -> Catalog:
    loaded = load_providers(settings.providers)
    for provider in loaded.providers.values():
        stack.push_async_callback(close_provider, provider)
    return build_catalog(settings.models, loaded.providers, loaded.unavailable)
