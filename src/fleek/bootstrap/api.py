"""What an api process works with."""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from fleek.bootstrap.parts import Ground, open_ground, show
from fleek.bootstrap.secret_key import load_secret
from fleek.core.cursor import CursorCodec
from fleek.db.schema import Schema
from fleek.db.session import Database
from fleek.jobs.figures import QueueWatch
from fleek.jobs.lanes import Lanes
from fleek.jobs.service import JobService
from fleek.jobs.waiting import Waiters
from fleek.logs.service import LogService
from fleek.media.service import MediaService
from fleek.media.signing import SignedUrls
from fleek.media.variants import VariantMaker
from fleek.observability.metrics import Metrics
from fleek.observability.queue_metrics import QueueCollector
from fleek.providers.registry import Catalog
from fleek.queue.base import DEFAULT_QUEUE
from fleek.queue.cache import RedisCache
from fleek.queue.celery_app import publish_ping
from fleek.queue.pubsub import RedisPubSub
from fleek.queue.round_trip import RoundTrips
from fleek.settings import Settings
from fleek.storage.base import ObjectStorage
from fleek.storage.signed_urls import UrlSigner


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


@asynccontextmanager
async def open_api(settings: Settings, metrics: Metrics) -> AsyncIterator[ApiContext]:
    """Build an api process's parts, start what runs in the background, and close all of it."""
    async with AsyncExitStack() as stack:
        ground = await open_ground(stack, settings, metrics, "fleek api")
        cursors = CursorCodec(load_secret(settings))
        media = await _open_media(stack, settings, metrics, ground, cursors)
        waiters = await _open_waiters(stack, ground)
        round_trips = _open_round_trips(stack, settings, ground)
        _run_beside(stack, ground.schema.until_usable())
        yield ApiContext(
            settings=settings,
            database=ground.database,
            catalog=ground.catalog,
            jobs=JobService(
                ground.database,
                ground.catalog,
                ground.waker,
                ground.pubsub,
                cursors,
                media.delete_objects,
                metrics,
            ),
            lanes=Lanes(ground.database, ground.waker, metrics=metrics),
            media=media,
            storage=ground.storage,
            signer=ground.signer,
            waiters=waiters,
            pubsub=ground.pubsub,
            schema=ground.schema,
            round_trips=round_trips,
            metrics=metrics,
            queue_watch=_open_queue_watch(stack, ground.database, metrics),
            logs=LogService(ground.database),
        )


async def _open_media(
    stack: AsyncExitStack, settings: Settings, metrics: Metrics, ground: Ground, cursors: CursorCodec
) -> MediaService:
    signed_urls = await _open_signed_urls(stack, settings, ground.storage, metrics)
    variants = VariantMaker(ground.storage, ground.images)
    return MediaService(ground.database, ground.storage, variants, cursors, signed_urls)


async def _open_signed_urls(
    stack: AsyncExitStack, settings: Settings, storage: ObjectStorage, metrics: Metrics
) -> SignedUrls:
    """With the cache that api processes share, where they are to."""
    reuse, ttl = settings.content_url_reuse, timedelta(seconds=settings.content_url_ttl)
    cache = None
    if reuse == "shared":
        secret = hmac.digest(load_secret(settings), repr(_origin_of_urls(settings)).encode(), "sha256")
        cache = RedisCache(settings.resolved_redis_url, secret)
        await cache.start()
        stack.push_async_callback(cache.aclose)
    return SignedUrls(storage, ttl, cache, metrics, is_reusing=reuse != "off")


def _origin_of_urls(settings: Settings) -> tuple[str | None, ...]:
    """What tells our URLs from those of another bucket, endpoint or key: these are none of ours.

    Temporary keys are no part of it: each process has its own, and their URLs end with them.
    """
    is_temporary = "AWS_SESSION_TOKEN" in os.environ
    return (
        settings.resolved_storage_url,
        settings.storage_endpoint,
        settings.storage_public_endpoint,
        None if is_temporary else os.environ.get("AWS_ACCESS_KEY_ID"),
    )


async def _open_waiters(stack: AsyncExitStack, ground: Ground) -> Waiters:
    waiters = Waiters(ground.database, ground.pubsub)
    await waiters.start()
    stack.push_async_callback(waiters.aclose)
    await ground.pubsub.start()
    stack.push_async_callback(ground.pubsub.aclose)
    return waiters


def _open_round_trips(stack: AsyncExitStack, settings: Settings, ground: Ground) -> RoundTrips:
    publish = partial(publish_ping, ground.celery)
    round_trips = RoundTrips(settings.resolved_redis_url, publish, _queues_in_use(ground.catalog))
    stack.push_async_callback(round_trips.aclose)
    return round_trips


def _queues_in_use(catalog: Catalog) -> list[str]:
    """The queues that jobs of the catalog's models wait in."""
    queues = {model.queue for model in catalog.all()}
    return sorted(queues | {DEFAULT_QUEUE} if catalog.is_open or not queues else queues)


def _open_queue_watch(stack: AsyncExitStack, database: Database, metrics: Metrics) -> QueueWatch:
    """Puts the queue's figures among what the process counts itself."""
    collector = QueueCollector(metrics.model_label)
    show(stack, metrics, collector)
    return QueueWatch(database, collector)


def _run_beside(stack: AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` in the background until it ends, or the stack is closed."""
    task = asyncio.create_task(work)
    stack.callback(task.cancel)
