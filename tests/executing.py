"""Executions of real jobs over a fake provider and a real store that can be switched off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from fleek.jobs.claim import ClaimedJob
from fleek.jobs.execution import Execution, Workshop
from fleek.jobs.keeper import LeaseKeeper
from fleek.jobs.orders import OrderLimits
from fleek.media.images import ImageWorker
from fleek.observability.metrics import Metrics
from fleek.providers.base import Capabilities, Provider
from fleek.providers.registry import Model
from fleek.storage.base import ObjectInfo, ObjectStorage, SignedUrl, StorageError
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner
from fleek.testing import RESUMABLE, FakeProvider, FakeVendor, RecordingPubSub
from tests.queueing import FAKE, LEASE, Queue

MAX_BYTES = 1_000_000
PAID_AT_ONCE = Capabilities(paid=True, seed=True, max_outputs=8)
"""A backend that keeps nothing: it answers with its outputs, for money."""


class UnreliableStorage:
    """A real store in memory, which refuses every put while it is `down`."""

    def __init__(self) -> None:
        self._storage: ObjectStorage = open_storage("memory://", signer=UrlSigner(b"0" * 32))
        self.down = False
        self.puts: list[str] = []
        """Keys of puts that were tried."""
        self.hold: asyncio.Event | None = None
        """Puts wait for this before they are done."""

    async def put(
        self, key: str, content: AsyncIterable[bytes] | bytes, *, content_type: str, filename: str
    ) -> None:
        self.puts.append(key)
        if self.hold is not None:
            await self.hold.wait()
        if self.down:
            raise StorageError("the store is down")
        await self._storage.put(key, content, content_type=content_type, filename=filename)

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        return self._storage.get(key, start=start, end=end)

    async def read(self, key: str) -> bytes:
        return b"".join([chunk async for chunk in self.get(key)])

    async def head(self, key: str) -> ObjectInfo:
        return await self._storage.head(key)

    async def delete(self, keys: list[str]) -> None:
        await self._storage.delete(keys)

    def list(self, prefix: str, *, after: str | None = None) -> AsyncIterator[ObjectInfo]:
        return self._storage.list(prefix, after=after)

    async def sign(self, key: str, *, expires_in: timedelta) -> SignedUrl:
        return await self._storage.sign(key, expires_in=expires_in)

    async def check(self) -> None:
        await self._storage.check()

    async def prepare(self) -> bool:
        return await self._storage.prepare()


def fake_model(provider: Provider, **changes: Any) -> Model:
    """The model `fake` as it is configured over this provider."""
    model = Model(
        name=FAKE.name,
        provider=provider,
        ref="vendor/fake",
        queue="default",
        max_concurrency=None,
        attempt_timeout=FAKE.attempt_timeout,
        price_per_output=None,
        description="",
        schema=None,
    )
    return replace(model, **changes)


class Worker:
    """What one worker process shares between its executions, over one fake provider."""

    def __init__(self, queue: Queue, provider: FakeProvider | None = None) -> None:
        self.queue = queue
        self.provider = provider or FakeProvider()
        self.storage = UnreliableStorage()
        self.pubsub = RecordingPubSub()
        self.due: list[timedelta] = []
        self.images = ImageWorker(1)
        self.metrics = Metrics([FAKE.name])
        self.keeper = LeaseKeeper(queue.database, lease=LEASE, interval=timedelta(seconds=10))
        self.shop = Workshop(
            database=queue.database,
            storage=self.storage,
            images=self.images,
            pubsub=self.pubsub,
            keeper=self.keeper,
            max_output_bytes=MAX_BYTES,
            on_due=self.due.append,
            order_limits=OrderLimits(reconcile=timedelta(0)),
            metrics=self.metrics,
        )

    def execution(self, job: ClaimedJob, **model: Any) -> Execution:
        """An execution of a claim."""
        return Execution(job, fake_model(self.provider, **model), self.shop)

    async def run(self, job: ClaimedJob, **model: Any) -> Any:
        """Run a claim to its end; the row of the job after it."""
        await asyncio.wait_for(self.execution(job, **model).run(), timeout=20)
        return await self.queue.row(job.id)

    def begin(self, job: ClaimedJob, **model: Any) -> tuple[Execution, asyncio.Task[None]]:
        """Start a claim in the background."""
        execution = self.execution(job, **model)
        return execution, asyncio.create_task(execution.run())

    async def claim_and_run(self) -> Any:
        """Claim the one job that is due now, whatever it waits for, and run it; its row after that."""
        await self.queue.make_due()
        return await self.run(await self.queue.claim_one())


def paid_worker(queue: Queue) -> Worker:
    """A worker over a backend that takes three outputs an order, for money."""
    vendor = FakeVendor(price=Decimal("0.003"))
    return Worker(queue, FakeProvider(vendor, capabilities=replace(RESUMABLE, max_outputs=3)))


def second(worker: Worker) -> Worker:
    """Another worker process that talks to the same backend."""
    other = FakeProvider(worker.provider.vendor, capabilities=worker.provider.capabilities)
    return Worker(worker.queue, other)


async def resolutions(queue: Queue, job_id: UUID) -> list[str | None]:
    """How the orders of a job ended, by ordinal; None for those that are open."""
    return [order.resolution for order in await queue.orders(job_id)]
