"""The fake Replicate itself: it answers as the vendor's published document says, and does what it is told."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.replicate_openapi import validator
from tests.replicate_server import ReplicateServer

CREATE = "/models/black-forest-labs/flux-schnell/predictions"
PREDICTION = validator("schemas_prediction_response")
PAGE = validator("schemas_paginated_prediction_response")
VERSION = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"


@pytest.fixture
async def client(vendor: ReplicateServer) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"Authorization": f"Bearer {vendor.token}"}
    async with httpx2.AsyncClient(base_url=vendor.url, headers=headers, trust_env=False) as client:
        yield client


async def create(client: httpx2.AsyncClient, path: str = CREATE, **fake: Any) -> dict[str, Any]:
    reply = await client.post(path, json={"input": {"prompt": "a", "fake": fake}})
    assert reply.status_code == 201
    found: dict[str, Any] = reply.json()
    return found


@pytest.mark.parametrize("end", ["succeeded", "failed", "canceled", "aborted", "never", "lost"])
async def test_every_answer_fits_the_published_document(client: httpx2.AsyncClient, end: str) -> None:
    created = await create(client, end=end, seconds=0.02)
    answers = [created]
    for _ in range(4):
        await asyncio.sleep(0.01)
        answers.append((await client.get(f"/predictions/{created['id']}")).json())
    canceled = (await client.post(f"/predictions/{created['id']}/cancel")).json()
    page = (await client.get("/predictions")).json()

    if end != "lost":
        for answer in [*answers, canceled]:
            PREDICTION.validate(answer)
        assert answers[-1]["status"] == ("processing" if end == "never" else end)
    PAGE.validate(page)
    assert len(page["results"]) == (0 if end == "lost" else 1)


@pytest.mark.parametrize(
    ("path", "body", "facts"),
    [
        (CREATE, {}, {"model": "black-forest-labs/flux-schnell", "version": "hidden"}),
        ("/predictions", {"version": VERSION}, {"version": VERSION}),
        ("/deployments/acme/app/predictions", {}, {"deployment": "acme/app"}),
    ],
)
async def test_each_way_to_create_fits_the_published_document(
    client: httpx2.AsyncClient, path: str, body: dict[str, Any], facts: dict[str, Any]
) -> None:
    created = (
        await client.post(path, json={"input": {"prompt": "a"}, **body}, headers={"Cancel-After": "1h5s"})
    ).json()

    PREDICTION.validate(created)
    assert created | facts == created
    assert created["deadline"] > created["created_at"]


@dataclass(frozen=True)
class Refused:
    """A request that Replicate would refuse."""

    status: int
    path: str = CREATE
    body: Any = None
    token: str = "r8_test_token"
    cancel_after: str = "5s"


@pytest.mark.parametrize(
    "case",
    [
        Refused(401, token="wrong"),
        Refused(404, path="/models/missing/model/predictions"),
        Refused(404, path="/nothing"),
        Refused(422, body={"prompt": "no input"}),
        Refused(422, body={"input": {}, "unknown": 1}),
        Refused(422, body={"input": "text"}),
        Refused(422, path="/predictions", body={"input": {}}),
        Refused(422, cancel_after="4s"),
        Refused(422, cancel_after="soon"),
        Refused(422, cancel_after=""),
    ],
)
async def test_what_replicate_refuses_is_refused_and_costs_nothing(
    vendor: ReplicateServer, client: httpx2.AsyncClient, case: Refused
) -> None:
    headers = {"Authorization": f"Bearer {case.token}", "Cancel-After": case.cancel_after}
    body = {"input": {}} if case.body is None else case.body

    reply = await client.post(case.path, json=body, headers=headers)

    assert reply.status_code == case.status
    assert reply.json()["status"] == case.status
    assert vendor.accepted == []
    assert len(vendor.ledger) == len(vendor.requests_to("create"))


async def test_it_runs_as_a_process_with_a_ledger_and_is_told_over_http(tmp_path: Path) -> None:
    ledger = tmp_path / "creates.jsonl"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.replicate_server",
        "--ledger",
        str(ledger),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        started = json.loads(await process.stdout.readline())
    headers = {"Authorization": f"Bearer {started['token']}"}
    admin = started["base_url"].removesuffix("/v1") + "/admin"
    async with httpx2.AsyncClient(base_url=started["base_url"], headers=headers, trust_env=False) as client:
        created = await create(client)
        await client.post(
            f"{admin}/rules", json=[{"on": "create", "status": 503}, {"on": "list", "cut": "after"}]
        )
        refused = await client.post(CREATE, json={"input": {"prompt": "b"}})
        await client.delete(f"{admin}/rules")
        listed = await client.get("/predictions")
        await client.post(f"{admin}/predictions/{created['id']}", json={"lost": True})
        lost = await client.get(f"/predictions/{created['id']}")
        told = (await client.get(f"{admin}/ledger")).json()
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        code = await process.wait()

    assert (refused.status_code, listed.status_code, lost.status_code, code) == (503, 200, 404, 0)
    assert [entry["id"] for entry in told] == [created["id"], None]
    assert [json.loads(line) for line in ledger.read_text().splitlines()] == told
    assert told[0]["input"]["prompt"] == "a"
    assert told[0]["headers"]["authorization"] == f"Bearer {started['token']}"
