"""Replicate's HTTP API: what is asked there, and what its answers mean. Knows nothing of jobs."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, quote

from fleek.core.errors import ProviderError, ProviderErrorKind
from fleek.providers.http import ApiClient, NotSentError, Reply, ReplyLostError
from fleek.providers.replicate_errors import error_of_create, error_of_question, says_unknown
from fleek.providers.replicate_inputs import InputSchema
from fleek.providers.replicate_models import ReplicateModel

Prediction = Mapping[str, Any]

_TRIES = 3
"""Of a question, which changes nothing; a create is tried once."""
_MAX_PAGES = 25
"""Pages of a hundred predictions: more than can be created in the time around one order."""
_SHORTEST_DEADLINE = timedelta(seconds=5)
"""Replicate refuses a shorter one."""
_SCHEMA_LIFE, _UNKNOWN_LIFE = 3600.0, 600.0
"""Seconds after which a model's schema is asked for again, where there was one and where there was none."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_SILENT = "Replicate does not answer"


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that Replicate gets to answer, and to recover."""

    create: float = 10.0
    schema: float = 8.0
    """For all tries to learn what a model takes. Together with a create it must stay below the time in which
    the engine waits for an order: past that, the order counts as one whose answer was lost."""
    question: float = 10.0
    cancel: float = 5.0
    pause: float = 0.25
    """Before the second try of a question; four times as long before the third."""


class ReplicateApi:
    """The routes that the provider needs. Every method raises ProviderError and nothing else."""

    def __init__(self, client: ApiClient, patience: Patience) -> None:
        self._client = client
        self._patience = patience
        self._schemas: dict[str, tuple[InputSchema | None, float]] = {}
        self._asking: dict[str, asyncio.Task[InputSchema | None]] = {}

    async def create(
        self, model: ReplicateModel, values: Mapping[str, Any], time_left: timedelta
    ) -> Prediction:
        """Create one prediction, which Replicate itself stops after `time_left`."""
        seconds = int(max(time_left, _SHORTEST_DEADLINE).total_seconds())
        try:
            reply = await self._client.send(
                "POST",
                model.create_path,
                body=model.body(values),
                headers={"Cancel-After": f"{seconds}s"},
                seconds=self._patience.create,
            )
        except NotSentError as error:
            raise ProviderError(ProviderErrorKind.TRANSIENT, "Replicate could not be reached") from error
        except ReplyLostError as error:
            message = "Replicate's answer to an order was lost: it may have been placed, and be paid for"
            raise ProviderError(ProviderErrorKind.AMBIGUOUS, message) from error
        if reply.status in {HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.ACCEPTED}:
            prediction = await reply.json()
            if isinstance(prediction, dict) and _ID.fullmatch(str(prediction.get("id"))):
                return prediction
        raise await error_of_create(reply, values)

    async def get(self, prediction_id: str) -> Prediction | None:
        """A prediction as it is now; None for one that Replicate does not know, or not any more."""
        reply = await self._ask(f"/predictions/{quote(prediction_id, safe='')}")
        if await says_unknown(reply):
            return None
        prediction = await reply.json() if reply.status == HTTPStatus.OK else None
        if not isinstance(prediction, dict) or "status" not in prediction:
            raise await error_of_question(reply)
        return prediction

    async def cancel(self, prediction_id: str) -> None:
        """Ask for the end of a prediction; the answer does not matter."""
        path = f"/predictions/{quote(prediction_id, safe='')}/cancel"
        try:
            await self._client.send("POST", path, seconds=self._patience.cancel)
        except (NotSentError, ReplyLostError) as error:
            raise ProviderError(ProviderErrorKind.TRANSIENT, "Replicate did not hear of a cancel") from error

    async def list_created(self, after: datetime, before: datetime) -> AsyncIterator[Prediction]:
        """The account's predictions that were created in a window, the newest first.

        Raises ProviderError when there are too many to be read.
        """
        query = {"created_after": _rfc3339(after), "created_before": _rfc3339(before)}
        for _ in range(_MAX_PAGES):
            reply = await self._ask("/predictions", query)
            page = await reply.json() if reply.status == HTTPStatus.OK else None
            if not isinstance(page, dict) or not isinstance(page.get("results"), list):
                raise await error_of_question(reply)
            for prediction in page["results"]:
                if isinstance(prediction, dict):
                    yield prediction
            if not page.get("next"):
                return
            # Only its query is taken: the token goes where the operator sends it, not where a page points.
            query = dict(parse_qsl(str(page["next"]).partition("?")[2]))
        raise ProviderError(ProviderErrorKind.TRANSIENT, "Replicate lists too many predictions to read")

    async def schema(self, model: ReplicateModel) -> InputSchema | None:
        """What a model takes; None where that cannot be known. Asked once an hour, for all who wait."""
        path = model.schema_path
        if path is None:
            return None
        known, until = self._schemas.get(path, (None, 0.0))
        if time.monotonic() < until:
            return known
        # One who is canceled takes nothing from the others.
        return await asyncio.shield(self._asking.get(path) or self._begin_asking(path))

    async def aclose(self) -> None:
        """Close the connections."""
        for task in list(self._asking.values()):
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        await self._client.aclose()

    def _begin_asking(self, path: str) -> asyncio.Task[InputSchema | None]:
        task = self._asking[path] = asyncio.create_task(self._learn_schema(path))
        task.add_done_callback(lambda done: self._end_asking(path, done))
        return task

    def _end_asking(self, path: str, task: asyncio.Task[InputSchema | None]) -> None:
        del self._asking[path]
        if not task.cancelled():
            # With everybody gone who waited nobody else would look at it, which asyncio complains about.
            task.exception()

    async def _learn_schema(self, path: str) -> InputSchema | None:
        reply = await self._ask_for_schema(path)
        if reply.status != HTTPStatus.OK and not await says_unknown(reply):
            raise await error_of_question(reply)
        found = InputSchema.read(await reply.json()) if reply.status == HTTPStatus.OK else None
        life = _UNKNOWN_LIFE if found is None else _SCHEMA_LIFE
        self._schemas[path] = (found, time.monotonic() + life)
        return found

    async def _ask_for_schema(self, path: str) -> Reply:
        """Asked before an order is placed, and so bounded as a whole: nothing was ordered when it fails."""
        try:
            async with asyncio.timeout(self._patience.schema):
                return await self._ask(path)
        except TimeoutError as error:
            raise ProviderError(ProviderErrorKind.TRANSIENT, _SILENT) from error

    async def _ask(self, path: str, query: Mapping[str, str] | None = None) -> Reply:
        """A question; what got lost on the way, or a server's hiccup, is asked again after a moment."""
        pause = self._patience.pause
        for tries_left in reversed(range(_TRIES)):
            try:
                reply = await self._client.send("GET", path, query=query, seconds=self._patience.question)
            except (NotSentError, ReplyLostError) as error:
                if not tries_left:
                    raise ProviderError(ProviderErrorKind.TRANSIENT, _SILENT) from error
            else:
                if reply.status < HTTPStatus.INTERNAL_SERVER_ERROR or not tries_left:
                    return reply
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  jitter, no secret
            pause *= 4
        raise AssertionError  # pragma: no cover  the last try returns or raises


def _rfc3339(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
