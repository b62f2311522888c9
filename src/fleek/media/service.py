"""What clients can do with results: look, list, fetch, delete."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import structlog

from fleek.core.cursor import CursorCodec, Position
from fleek.core.errors import Gone, JobNotFinished, NotFound, NotReady, StorageUnavailable
from fleek.core.job import TERMINAL, Status
from fleek.core.media import VARIANTS, Variant, by_content_type, variant_key
from fleek.core.urls import Urls
from fleek.db.session import Database
from fleek.media import repository
from fleek.media.images import no_variants
from fleek.media.outputs import download_name
from fleek.media.repository import MediaFilter, MediaRow, MediaState, StoredBytes
from fleek.media.schemas import MediaOut, MediaPage
from fleek.media.signing import Signable, SignedUrls
from fleek.media.variants import VariantMaker
from fleek.storage.base import ObjectNotFoundError, ObjectStorage, SignedUrl, StorageError

_ASK_WHILE_PROCESSING = timedelta(seconds=1)
_ASK_WHILE_QUEUED = timedelta(seconds=2)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Content:
    """Stored bytes, for an answer that carries them itself."""

    content_type: str
    size: int
    """Bytes."""
    etag: str
    """A strong entity tag, with its quotes."""
    filename: str
    chunks: Callable[[int, int | None], AsyncIterator[bytes]]
    """The bytes from the first position up to, not including, the second (None: the end)."""


class MediaService:
    """Results of jobs, and their bytes in the object store.

    Asking for the bytes before they are stored is NotReady while the job may still store them, and
    NotFound once it ended without, so that a client which repeats on NotReady comes to an end. After
    a deletion or expiry everything is Gone.
    """

    def __init__(
        self,
        database: Database,
        storage: ObjectStorage,
        variants: VariantMaker,
        cursors: CursorCodec,
        signed_urls: SignedUrls,
    ) -> None:
        self._database = database
        self._storage = storage
        self._variants = variants
        self._cursors = cursors
        self._signed_urls = signed_urls

    async def get(self, owner: str, media_id: UUID, urls: Urls) -> MediaOut:
        """One result, stored or still to come; raises NotFound or Gone."""
        return MediaOut.from_row((await self._get_live(owner, media_id)).media, urls)

    async def list(  # noqa: PLR0913  whose, which, how links begin, from where, how many, how
        self, owner: str, filters: MediaFilter, urls: Urls, *, cursor: str | None, limit: int, sign: bool
    ) -> MediaPage:
        """A page of results, newest first, those that are still to come included.

        With `sign`, each stored result carries a signed URL. Raises InvalidCursor for a cursor of
        another list.
        """
        scope = filters.scope(owner)
        after = self._cursors.decode(cursor, scope) if cursor is not None else None
        rows = await repository.list_media(self._database, owner, filters, after, limit + 1)
        page, more = rows[:limit], len(rows) > limit
        last = Position(page[-1].created_at, page[-1].id) if more else None
        signed = await self._sign_all(page) if sign else {}
        return MediaPage(
            items=[_to_out(row, urls, signed) for row in page],
            next_cursor=self._cursors.encode(last, scope) if last else None,
        )

    async def content_url(self, owner: str, media_id: UUID, variant: Variant | None = None) -> SignedUrl:
        """A short-lived URL of the bytes, or of a variant, which is made when it is first asked for.

        Raises NotFound, Gone, NotReady, StorageUnavailable, and InvalidRequest where a result cannot
        have variants.
        """
        stored = await self._get_stored(owner, media_id)
        with _translated():
            known_as = stored.key if variant is None else variant_key(stored.key, variant)
            wanted = Signable(known_as, stored.time_left)
            # A URL that is known spares the question whether the store has the variant.
            known = await self._signed_urls.find([wanted])
            if not known:
                await self._key_of(stored, variant)
                known = await self._signed_urls.sign([wanted])
            return known[known_as]

    async def open(self, owner: str, media_id: UUID, variant: Variant | None = None) -> Content:
        """The bytes themselves; raises what `content_url` raises."""
        stored = await self._get_stored(owner, media_id)
        with _translated():
            key = await self._key_of(stored, variant)
            info = await self._storage.head(key)
        return Content(
            content_type=f"image/{variant.output_format}" if variant else stored.content_type,
            size=info.size,
            etag=f'"{stored.sha256}-{variant}"' if variant else f'"{stored.sha256}"',
            filename=download_name(key),
            chunks=lambda start, end: self._chunks(key, start, end),
        )

    async def delete(self, owner: str, media_id: UUID) -> None:
        """Make a result Gone, then delete its bytes and variants.

        Raises NotFound, Gone, and JobNotFinished while the job may still store the result. The row
        stays as a tombstone, which tells Gone from NotFound.
        """
        key = await repository.delete_media(self._database, owner, media_id)
        if key is None:
            state = await self._get_live(owner, media_id)
            has_ended_without = state.stored is None and state.job_status in TERMINAL
            raise _never_stored() if has_ended_without else JobNotFinished
        await self.delete_objects([key])

    async def delete_objects(self, keys: Sequence[str]) -> None:
        """Delete objects and their variants, as far as the store answers; never raises.

        Their rows are gone by then: what stays behind is an object that no live row names, and is
        found by that.
        """
        doomed = [name for key in keys for name in (key, *(variant_key(key, each) for each in VARIANTS))]
        try:
            await self._storage.delete(doomed)
        except StorageError as error:
            # Their job may be gone, and its records go with it.
            _log.warning("objects_left_behind", job_id=None, keys=list(keys), error=str(error))

    async def _get_live(self, owner: str, media_id: UUID) -> MediaState:
        state = await repository.get_media_or_none(self._database, owner, media_id)
        if state is None:
            raise NotFound("media")
        if not state.is_live:
            raise Gone
        return state

    async def _get_stored(self, owner: str, media_id: UUID) -> StoredBytes:
        state = await self._get_live(owner, media_id)
        if state.stored is not None:
            return state.stored
        if state.job_status in TERMINAL:
            raise _never_stored()
        raise NotReady(_ask_again_after(state))

    async def _key_of(self, stored: StoredBytes, variant: Variant | None) -> str:
        if variant is None:
            return stored.key
        media_type = by_content_type(stored.content_type)
        if media_type is None:
            raise no_variants()
        return await self._variants.ensure(stored.key, media_type, variant)

    async def _sign_all(self, page: Sequence[MediaRow]) -> Mapping[str, SignedUrl]:
        """URLs of all results of a page that are stored, by their keys."""
        wanted = [Signable(row.key, row.time_left) for row in page if row.key is not None]
        with _translated():
            known = await self._signed_urls.find(wanted)
            signed = await self._signed_urls.sign([one for one in wanted if one.key not in known])
        return {**known, **signed}

    async def _chunks(self, key: str, start: int, end: int | None) -> AsyncIterator[bytes]:
        chunks = self._storage.get(key, start=start, end=end)
        while (chunk := await _next_chunk(chunks)) is not None:
            yield chunk


async def _next_chunk(chunks: AsyncIterator[bytes]) -> bytes | None:
    with _translated():
        return await anext(chunks, None)


def _to_out(media: MediaRow, urls: Urls, signed: Mapping[str, SignedUrl]) -> MediaOut:
    """With a signed URL where there is one of the result's bytes."""
    if media.key is None or media.key not in signed:
        return MediaOut.from_row(media, urls)
    return MediaOut.from_row(media, urls, urls.absolute(signed[media.key].url))


def _never_stored() -> NotFound:
    return NotFound("stored result: its job ended without one")


def _ask_again_after(state: MediaState) -> timedelta:
    """When asking again can be worth it: a job that waits for its next attempt says when that is."""
    if state.job_status is Status.PROCESSING:
        return _ASK_WHILE_PROCESSING
    return max(_ASK_WHILE_QUEUED, state.job_due_in + _ASK_WHILE_PROCESSING)


@contextmanager
def _translated() -> Iterator[None]:
    """Turns the store's errors into the product's; bytes that were taken away behind our back are Gone."""
    try:
        yield
    except StorageError as error:
        raise StorageUnavailable from error
    except ObjectNotFoundError as error:
        raise Gone from error
