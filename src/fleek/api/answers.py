"""Answers: JSON straight from pydantic's serializer, entity tags, and what depends on them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Send

from fleek.api.headers import has_tag

_REVALIDATE = "private, no-cache"
"""A cache may keep the answer, and asks with its tag before it uses it."""


class ClosingStream(StreamingResponse):
    """A stream whose source is closed at once when the client leaves, not whenever it is collected."""

    patience = 120.0
    """Seconds in which the client has to take the next piece; one that never reads has left, too."""

    async def stream_response(self, send: Send) -> None:
        """Send all of it, then close the source, however the sending ended."""

        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self.patience):
                    await send(message)
            except TimeoutError as error:
                raise _FrozenReaderError from error

        try:
            await super().stream_response(send_in_time)
        except _FrozenReaderError:
            pass  # The server closes a connection whose answer has no end.
        finally:
            if isinstance(self.body_iterator, AsyncGenerator):
                await self.body_iterator.aclose()


class _FrozenReaderError(Exception):
    """The client does not take what it asked for."""


def answer(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A model as JSON. FastAPI would validate it once more and serialize it through the same code."""
    return Response(to_json(model), status, headers, "application/json")


def to_json(model: BaseModel) -> bytes:
    """UTF-8; nothing is left out, so every documented field is there."""
    return model.__pydantic_serializer__.to_json(model)


def tag_of(content: bytes) -> str:
    """The strong entity tag of a representation."""
    return f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'


def tagged(request: Request, content: bytes, tag: str) -> Response:
    """JSON with its entity tag; 304 without a body where the client has it already."""
    headers = {"ETag": tag, "Cache-Control": _REVALIDATE}
    if has_tag(request, tag):
        return Response(status_code=304, headers=headers)
    return Response(content, 200, headers, "application/json")
