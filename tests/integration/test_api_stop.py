"""A stop of the api ends what waits with an answer, not with a broken connection."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from tests.queueing import wait_until


@pytest.fixture
def api(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """An api process as an operator starts one, and its URL; no worker runs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = os.environ | {
        "FLEEK_HOME": str(tmp_path),
        "FLEEK_DATABASE_URL": database_url,
        "FLEEK_REDIS_URL": redis_url,
        "FLEEK_STORAGE_URL": tmp_path.as_uri(),
    }
    command = [sys.executable, "-m", "fleek.cli.main", "api", "--port", str(port)]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        yield process, f"http://127.0.0.1:{port}"
        process.kill()


async def is_ready(client: httpx2.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).status_code == 200
    except httpx2.TransportError:
        return False


async def test_whoever_waits_is_answered_with_what_is_known(api: tuple[subprocess.Popen[bytes], str]) -> None:
    process, url = api
    async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
        async with asyncio.timeout(30):
            while not await is_ready(client):  # noqa: ASYNC110  what is awaited is behind a socket
                await asyncio.sleep(0.1)
        job = (await client.post("/v1/media/generate", json={"prompt": "x"})).json()
        held = asyncio.gather(
            client.get(f"/v1/media/status/{job['id']}", params={"wait": 30}),
            client.post("/v1/media/generate", json={"prompt": "y"}, headers={"Prefer": "wait=30"}),
            client.get(f"/v1/media/jobs/{job['id']}/events"),
        )
        await asyncio.sleep(1)

        process.send_signal(signal.SIGTERM)
        answers = await held
        await wait_until(lambda: process.poll() is not None, within=10)

    assert [answer.status_code for answer in answers] == [200, 202, 200]
    assert answers[0].json()["status"] == "in_queue"
    assert "event: accepted" in answers[2].text
