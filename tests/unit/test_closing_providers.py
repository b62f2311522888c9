"""What providers do at the end of a process does not keep it from ending."""

from __future__ import annotations

import asyncio

from fleek.bootstrap.parts import close_provider
from fleek.testing import FakeProvider


class Endless(FakeProvider):
    async def aclose(self) -> None:
        await asyncio.Event().wait()


class Broken(FakeProvider):
    async def aclose(self) -> None:
        raise RuntimeError("no such client")


async def test_a_provider_that_does_not_end_is_left_behind() -> None:
    async with asyncio.timeout(10):
        await close_provider(Endless(), within=0.05)


async def test_a_provider_that_fails_at_its_end_is_left_behind() -> None:
    await close_provider(Broken())
