"""One cheap order at the real Replicate, for whoever has a token: `script/live-replicate` runs it.

It places one order as a worker does, follows it by its handle, fetches what came of it, and then looks the
order up as if its answer had been lost. No test runs it against the real service: it costs money.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from fleek.core.errors import FleekError
from fleek.core.media import MAX_SEED, SNIFF_BYTES, sniff
from fleek.providers.base import AttemptContext, BytesOutput, Done, GenerationRequest, Handle, Output
from fleek.providers.replicate import ReplicateProvider
from fleek.providers.replicate_config import DEFAULT_BASE_URL, TOKEN_VARIABLE

MODEL = "black-forest-labs/flux-schnell"
PROMPT = "a lighthouse at dawn, seen from the sea"
WARNING = f"""This places one order at Replicate, for one picture by {MODEL}.
It costs about 0.003 US dollars, charged to the owner of {TOKEN_VARIABLE}.
Today's price is at https://replicate.com/{MODEL}
"""


async def run(provider: ReplicateProvider, folder: Path) -> Path:
    """Order, follow, fetch, look up; raises FleekError. The file that the picture is in."""
    intent_at = datetime.now(UTC)
    seed = secrets.randbelow(MAX_SEED + 1)
    request = GenerationRequest(MODEL, MODEL, PROMPT, seed=seed, input={"go_fast": True})
    context = AttemptContext(
        uuid4(),
        1,
        0,
        intent_at + timedelta(minutes=3),
        timedelta(minutes=3),
        lambda _: None,
        intent_at=intent_at,
    )
    accepted = await provider.submit(request, context)
    _say(f"ordered: {accepted.handle.id}")
    done = await _follow(provider, accepted.handle, context)
    _say(f"done: {dict(done.metrics)}")
    file = await _save(done.outputs[0], folder)
    _say(f"saved: {file} ({file.stat().st_size} bytes)")
    found = await provider.find(request, context)
    is_found = [handle.id for handle in found] == [accepted.handle.id]
    _say(f"found again by its model, time and input: {'yes' if is_found else 'NO'}")
    return file


async def _follow(provider: ReplicateProvider, handle: Handle, context: AttemptContext) -> Done:
    while not isinstance(answer := await provider.poll(handle, context), Done):
        _say("running" if answer.progress is None else f"running: {answer.progress:.0%}")
        await asyncio.sleep(1)
    return answer


async def _save(output: Output, folder: Path) -> Path:
    if isinstance(output, BytesOutput):
        content = output.data
    else:
        content = b"".join([piece async for piece in output.chunks])
    media_type = sniff(content[:SNIFF_BYTES])
    file = folder / f"live-replicate.{media_type.extension if media_type else 'bin'}"
    file.write_bytes(content)
    return file


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Say what it costs, ask, and run. The exit code."""
    parser = argparse.ArgumentParser(prog="script/live-replicate", description=WARNING)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--output", type=Path, default=Path(), help="the folder for the picture")
    parser.add_argument(
        "--base-url", default=DEFAULT_BASE_URL, help="something else that speaks the protocol"
    )
    given = parser.parse_args(arguments)
    if not environment.get(TOKEN_VARIABLE):
        sys.stderr.write(f"{TOKEN_VARIABLE} is not set: nothing was ordered\n")
        return 2
    sys.stderr.write(WARNING)
    if not given.yes and input("Go on? [y/N] ").strip().lower() != "y":
        return 1
    try:
        asyncio.run(_run_and_close(given.base_url, environment[TOKEN_VARIABLE], given.output))
    except FleekError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    return 0


async def _run_and_close(base_url: str, token: str, folder: Path) -> None:
    provider = ReplicateProvider.from_config({"base_url": base_url, "token": token})
    try:
        await run(provider, folder)
    finally:
        await provider.aclose()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
