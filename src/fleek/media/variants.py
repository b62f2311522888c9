"""Smaller copies of stored pictures: made when first asked for, once, and kept beside the original."""

from __future__ import annotations

import asyncio

from fleek.core.errors import InvalidRequest, OutputInvalid, Unavailable
from fleek.core.media import DECODABLE, MediaType, Variant, variant_key
from fleek.media.images import MAX_IMAGE_BYTES, ImageWorker, encode_variant, no_variants
from fleek.media.outputs import download_name
from fleek.storage.base import ObjectNotFoundError, ObjectStorage

MAX_WAITING = 64
"""Variants that may be in the making at once; memory is taken only by as many as there are threads."""


class VariantMaker:
    """Makes variants; requests of this process for the same one share the work."""

    def __init__(
        self, storage: ObjectStorage, images: ImageWorker, *, max_waiting: int = MAX_WAITING
    ) -> None:
        self._storage = storage
        self._images = images
        self._max_waiting = max_waiting
        self._making: dict[str, asyncio.Task[None]] = {}
        # An original is read only when a thread is free for it, so that few are in memory at once.
        self._turns = asyncio.Semaphore(images.threads)

    async def ensure(self, key: str, media_type: MediaType, variant: Variant) -> str:
        """The key of the variant of the object `key`, which exists when this returns.

        A caller that is canceled does not stop the work for the others. Raises InvalidRequest for
        what has no variants, Unavailable when too many are in the making, ObjectNotFoundError when
        the original is gone, StorageError.
        """
        if media_type not in DECODABLE:
            raise no_variants()
        made = variant_key(key, variant)
        if not await self._exists(made):
            await asyncio.shield(self._task(key, made, variant))
        return made

    async def aclose(self) -> None:
        """Stop what is in the making; nothing half-made is ever visible."""
        making = list(self._making.values())
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)

    async def _exists(self, key: str) -> bool:
        try:
            await self._storage.head(key)
        except ObjectNotFoundError:
            return False
        return True

    def _task(self, key: str, made: str, variant: Variant) -> asyncio.Task[None]:
        """The task that makes this variant, begun now unless it runs already."""
        task = self._making.get(made)
        if task is None:
            if len(self._making) >= self._max_waiting:
                message = "Too many variants are being made at the moment; try again shortly"
                raise Unavailable(message)
            task = self._making[made] = asyncio.create_task(self._make(key, made, variant))
            task.add_done_callback(lambda done: self._forget(made, done))
        return task

    def _forget(self, made: str, task: asyncio.Task[None]) -> None:
        del self._making[made]
        if not task.cancelled():
            # With every waiter gone nobody else would look at it, which asyncio complains about.
            task.exception()

    async def _make(self, key: str, made: str, variant: Variant) -> None:
        async with self._turns:
            content = await self._read(key)
            try:
                encoded = await self._images.run(encode_variant, content, variant)
            except OutputInvalid as error:
                raise InvalidRequest(error.message) from error
        await self._storage.put(
            made, encoded, content_type=f"image/{variant.output_format}", filename=download_name(made)
        )

    async def _read(self, key: str) -> bytes:
        if (await self._storage.head(key)).size > MAX_IMAGE_BYTES:
            raise no_variants()
        return b"".join([chunk async for chunk in self._storage.get(key)])
