"""Credentials that are at hand, and fetched anew before they end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from fleek.storage.base import StorageError
from fleek.storage.credentials import Credentials, CredentialSource

if TYPE_CHECKING:
    from obstore.store import S3Credential

_log = structlog.get_logger(__name__)

EARLY = timedelta(minutes=10)
"""With less life left, new ones are asked for; clouds have them 5 minutes before the end at the latest."""
_PAUSE_EARLY, _PAUSE_WANTED = timedelta(seconds=10), timedelta(minutes=5)
"""Between two fetches: with too little left to work, and with too little for what is to be signed."""
_PAUSE_FAILED = timedelta(seconds=1)
"""After a failure that left nobody any credentials; until then everybody is told of that one."""
_PATIENCE = 2.0
"""Seconds that a signature waits for newer credentials while those at hand are good."""


class CredentialCache:
    """Safe in threads: obstore asks from threads of its own, `sign` from the event loop."""

    def __init__(self, source: CredentialSource, clock: Callable[[], datetime]) -> None:
        self._source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._held: Credentials | None = None
        self._fetched_at: datetime | None = None
        self._failure: tuple[StorageError, datetime] | None = None
        self._fetching: asyncio.Task[Credentials] | None = None

    async def obtain(self, wanted: timedelta) -> Credentials:
        """As `get`, without blocking the event loop; all who wait share one thread.

        Those at hand do while newer ones are long in coming, whatever was wanted.
        """
        held = self.at_hand(wanted)
        if held is not None:
            return held
        fetching = self._fetching
        if fetching is None or fetching.done():
            fetching = self._fetching = asyncio.create_task(asyncio.to_thread(self.get, wanted))
            fetching.add_done_callback(_look_at)
        await asyncio.wait({fetching}, timeout=_PATIENCE)
        held = self._held
        if not fetching.done() and held is not None and not self._has_ended(held, self._clock()):
            return held
        return await asyncio.shield(fetching)

    def at_hand(self, wanted: timedelta) -> Credentials | None:
        """Without waiting; None where `get` would fetch."""
        return None if self._is_due(wanted) else self._held

    def get(self, wanted: timedelta = EARLY) -> Credentials:
        """Credentials with `wanted` life left, as far as the source has such. Takes seconds at times.

        Raises StorageError when it has none and those at hand have ended.
        """
        held = self._held
        if held is None or self._has_ended(held, self._clock()):
            self._lock.acquire()
        elif not self._lock.acquire(blocking=False):
            # Somebody else fetches: nobody needs to wait while those at hand are good.
            return held
        try:
            return self.at_hand(wanted) or self._fetch()
        finally:
            self._lock.release()

    def provide(self) -> S3Credential:
        """As obstore asks for them; it asks again five minutes before `expires_at`."""
        held = self.get()
        return {
            "access_key_id": held.access_key_id,
            "secret_access_key": held.secret_access_key,
            "token": held.token,
            "expires_at": held.expires_at,
        }

    def _is_due(self, wanted: timedelta) -> bool:
        held, fetched_at, now = self._held, self._fetched_at, self._clock()
        if held is None or fetched_at is None:
            return True
        left = held.life_left(now)
        # Without an end there is nothing to wait for: such credentials come from the environment.
        if left is None or held.expires_at is None or left >= max(wanted, EARLY):
            return False
        if self._has_ended(held, now):
            return True
        return now - fetched_at >= (_PAUSE_EARLY if left < EARLY else _PAUSE_WANTED)

    def _fetch(self) -> Credentials:
        self._fail_again()
        try:
            self._held = self._source()
        except StorageError as error:
            if self._held is None or self._has_ended(self._held, self._clock()):
                self._failure = error, self._clock()
                raise
            _log.warning("credentials_not_renewed", error=str(error))
        # Not before: a source that is long in failing would be asked again at once.
        self._fetched_at = self._clock()
        return self._held

    def _fail_again(self) -> None:
        """For those who waited for a failure: each asking by itself, the last would wait for all of them."""
        if self._failure is not None and self._clock() - self._failure[1] < _PAUSE_FAILED:
            failure = self._failure[0]
            raise type(failure)(failure.message, failure.remedy)

    @staticmethod
    def _has_ended(held: Credentials, now: datetime) -> bool:
        left = held.life_left(now)
        return left is not None and left <= timedelta(0)


def _look_at(fetching: asyncio.Task[Credentials]) -> None:
    """With every waiter gone nobody else would, which asyncio complains about."""
    if not fetching.cancelled():
        fetching.exception()
