"""Accepting jobs, through the public schema."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import httpx2
import pytest
from structlog.testing import capture_logs
from tests.api.serving import Api, RawAnswer, problem
from tests.api.states import eventually

from fleek.jobs.waiting import Waiters

PROMPT = {"prompt": "a lighthouse at dawn"}


async def generate(
    client: httpx2.AsyncClient,
    body: dict[str, Any] = PROMPT,
    path: str = "/v1/media/generate",
    **headers: str,
) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post(path, json=body, headers=named)


def post(api: Api, headers: list[tuple[str, str]]) -> RawAnswer:
    content = [("Content-Type", "application/json"), *headers]
    return api.ask("POST", "/v1/media/generate", content, json.dumps(PROMPT).encode())


async def test_an_accepted_job_is_answered_with_202_its_url_and_the_ids_of_its_results(
    client: httpx2.AsyncClient, api: Api
) -> None:
    answer = await generate(client, PROMPT | {"n": 2, "seed": 7})

    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"{api.url}/v1/media/jobs/{job['id']}"
    assert (job["status"], job["reason"], job["seed"]) == ("in_queue", "accepted", 7)
    assert len(set(job["media_ids"])) == 2
    assert "idempotency-replayed" not in answer.headers


async def test_the_accepted_job_is_the_same_when_it_is_read_from_its_url(client: httpx2.AsyncClient) -> None:
    answer = await generate(client, PROMPT | {"width": 512, "height": 256, "metadata": {"a": "b"}})
    read = await client.get(answer.headers["location"])

    assert read.json() == answer.json()


async def test_the_route_without_a_version_is_the_same_operation(
    client: httpx2.AsyncClient, tag: str
) -> None:
    first = await generate(client, path="/media/generate", idempotency_key=tag)
    second = await generate(client, path="/v1/media/generate", idempotency_key=tag)

    assert first.headers["location"] == second.headers["location"]
    assert "/v1/" in first.headers["location"]
    assert second.headers["idempotency-replayed"] == "true"


async def test_the_same_key_and_body_give_the_same_job_as_it_is_now(
    client: httpx2.AsyncClient, tag: str
) -> None:
    first = (await generate(client, idempotency_key=tag)).json()
    await client.post(f"/v1/media/jobs/{first['id']}/cancel")
    # The order of keys, white space and escapes are no difference.
    content = b'{ "prompt": "a lighthouse at d\\u0061wn" }'
    headers = {"Idempotency-Key": tag, "Content-Type": "application/json; charset=UTF-8"}
    second = await client.post("/media/generate", content=content, headers=headers)

    assert second.status_code == 202
    assert second.headers["idempotency-replayed"] == "true"
    assert (second.json()["id"], second.json()["status"]) == (first["id"], "canceled")


async def test_the_same_key_with_another_body_is_refused(client: httpx2.AsyncClient, tag: str) -> None:
    await generate(client, idempotency_key=tag)
    # A default that is spelt out is another body: what was sent counts, not what it means today.
    other = await generate(client, PROMPT | {"n": 1}, idempotency_key=tag)

    assert problem(other.json()) == (422, "idempotency_mismatch")


async def test_a_refused_request_does_not_use_its_key_up(client: httpx2.AsyncClient, tag: str) -> None:
    refused = await generate(client, PROMPT | {"n": 99}, idempotency_key=tag)
    accepted = await generate(client, PROMPT, idempotency_key=tag)

    assert refused.status_code == 422
    assert accepted.status_code == 202
    assert "idempotency-replayed" not in accepted.headers


async def test_many_requests_with_one_key_at_once_make_one_job(client: httpx2.AsyncClient, tag: str) -> None:
    answers = await asyncio.gather(*(generate(client, idempotency_key=tag) for _ in range(40)))

    jobs = [answer.json()["id"] for answer in answers if answer.status_code == 202]
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert len(set(jobs)) == 1
    assert (
        sum("idempotency-replayed" not in answer.headers for answer in answers if answer.status_code == 202)
        == 1
    )


@pytest.mark.parametrize(
    "keys",
    [
        [""],
        [" "],
        ["a" * 256],
        ["a" * 10_240],
        ["a b"],
        ["caf\u00e9"],
        ["a\tb"],
        ["one", "one"],
        ["one", "two"],
    ],
    ids=["empty", "blank", "256", "10 kB", "space", "not ascii", "tab", "repeated", "two"],
)
def test_a_malformed_idempotency_key_is_refused(api: Api, keys: list[str]) -> None:
    answer = post(api, [("Idempotency-Key", key) for key in keys])

    assert problem(answer.json()) == (400, "invalid_idempotency_key")


@pytest.mark.parametrize("key", ["!", "a" * 255, "~order:1/2?3"])
def test_any_visible_ascii_is_an_idempotency_key(api: Api, key: str) -> None:
    answer = post(api, [("Idempotency-Key", key)])

    assert answer.status == 202


async def test_an_unknown_model_is_not_found(client: httpx2.AsyncClient) -> None:
    answer = await generate(client, PROMPT | {"model": "no-such-model"})

    assert problem(answer.json()) == (404, "not_found")


async def test_input_that_the_model_does_not_take_is_refused_with_its_place(
    client: httpx2.AsyncClient,
) -> None:
    answer = await generate(client, PROMPT | {"input": {"delay_seconds": "soon"}})

    assert problem(answer.json()) == (422, "invalid_request")
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/input/delay_seconds"]


async def test_a_preferred_wait_that_passes_answers_202_and_says_that_it_was_followed(
    client: httpx2.AsyncClient,
) -> None:
    answer = await generate(client, prefer="respond-async, wait=1")

    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "wait=1"
    assert answer.json()["status"] == "in_queue"


async def test_a_preferred_wait_answers_200_as_soon_as_the_job_has_ended(
    client: httpx2.AsyncClient, tag: str
) -> None:
    job = (await generate(client, idempotency_key=tag)).json()
    waiting = asyncio.create_task(generate(client, idempotency_key=tag, prefer="wait=50"))
    await asyncio.sleep(0.3)
    await client.post(f"/v1/media/jobs/{job['id']}/cancel")
    answer = await asyncio.wait_for(waiting, 20)

    assert answer.status_code == 200
    assert answer.headers["idempotency-replayed"] == "true"
    assert answer.json()["status"] == "canceled"


@pytest.mark.parametrize(
    "prefer", ["wait=0", "wait=56", "wait=-1", "wait=1.5", "wait=soon", "wait", "wait=", "wait=99999999999"]
)
def test_a_malformed_wait_is_refused(api: Api, prefer: str) -> None:
    answer = post(api, [("Prefer", prefer)])

    assert problem(answer.json()) == (400, "invalid_preference")


@pytest.mark.parametrize(
    "prefer", ["respond-async", "return=minimal", "waiting=9", "", ";;,=", "wait =1, wait=99"]
)
def test_unknown_preferences_and_repeated_ones_are_ignored(api: Api, prefer: str) -> None:
    answer = post(api, [("Prefer", prefer)])

    assert answer.status == 202


async def test_text_is_stored_exactly_as_it_was_sent(client: httpx2.AsyncClient) -> None:
    prompt = "\u202eevil \u200b e" + "\u0301" * 500 + " 👩‍👩‍👧 \r\n \x1b[31m <script>{{7*7}}</script> \u2028"
    answer = await generate(client, {"prompt": prompt, "metadata": {"k\u202e": prompt[:100]}})
    read = await client.get(answer.headers["location"])

    assert read.json()["prompt"] == prompt
    assert read.json()["metadata"] == {"k\u202e": prompt[:100]}


async def test_a_client_that_leaves_changes_nothing_for_the_job_and_nobody_waits_for_it(
    client: httpx2.AsyncClient, api: Api, tag: str
) -> None:
    with capture_logs() as logs, pytest.raises(httpx2.ReadTimeout):
        await client.post(
            "/v1/media/generate",
            json=PROMPT,
            headers={"Idempotency-Key": tag, "Prefer": "wait=50"},
            timeout=httpx2.Timeout(10, read=1),
        )
    again = await generate(client, idempotency_key=tag)
    waiters: Waiters = api.app.state.context.waiters

    await eventually(lambda: waiters.count(UUID(again.json()["id"])) == 0)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["status"] == "in_queue"
    assert logs == []
