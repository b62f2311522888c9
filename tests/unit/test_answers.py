"""Streams to clients that leave, or stay and do not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from fleek.api.answers import ClosingStream


class Source:
    """Pieces, and whether they were let go."""

    def __init__(self) -> None:
        self.is_closed = False

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Without end."""
        try:
            while True:
                yield b"piece"
        finally:
            self.is_closed = True


class Hasty(ClosingStream):
    patience = 0.05


async def test_a_client_that_does_not_read_is_given_up_and_its_source_is_closed() -> None:
    source, taken = Source(), 0

    async def send(_message: Message) -> None:
        nonlocal taken
        taken += 1
        if taken > 3:
            await asyncio.Event().wait()

    async with asyncio.timeout(10):
        await Hasty(source.pieces()).stream_response(send)

    assert taken == 4
    assert source.is_closed


async def test_a_time_out_of_the_source_is_not_taken_for_the_clients() -> None:
    async def pieces() -> AsyncGenerator[bytes]:
        yield b"piece"
        raise TimeoutError

    async def send(_message: Message) -> None:
        pass

    with pytest.raises(TimeoutError):
        await ClosingStream(pieces()).stream_response(send)
