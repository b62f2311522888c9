"""Two apis and two workers on PostgreSQL, a broker and LocalStack, configured as compose does it.

200 real prompts, of which no result may be missing although an api and a worker are killed among them; then
what clients get of them by pre-signed URLs. LocalStack refuses altered and expired URLs; it does not refuse a
request without any signature, which S3 does, so nothing is shown of that here.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.cluster.composed import Composed, open_composed
from tests.cluster.invariants import JOBS, Facts, judge
from tests.localstack import LocalStack
from tests.prompts import Prompt, sample

from fleek.core.home import Home
from fleek.local.programs import valkey_program
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner

COUNT = 200
KILL_API_AT, KILL_WORKER_AT = 100, 150
"""Accepted jobs after which one of each pair is killed."""
END_SECONDS = 240
"""A bound against hangs."""
DOTENV = """
FLEEK_LEASE=3
FLEEK_RENEW_INTERVAL=0.8
FLEEK_RESCUE_INTERVAL=0.5
FLEEK_RESCUE_CONFIRM_AFTER=2
FLEEK_SLOTS=16
FLEEK_LOG_FORMAT=json
"""
"""What a user may add to `.env`: so that lost jobs are found after seconds rather than half a minute."""


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What is left when all is quiet."""

    composed: Composed
    accepted: Mapping[str, str]
    """The id of each job by its idempotency key."""
    asked: Mapping[str, Prompt]
    """What was asked under each key."""
    jobs: Sequence[Mapping[str, Any]]
    """The jobs in that order, with their media."""
    completed_before: int
    """Jobs that were completed when the worker was killed."""


def broker_program(name: str) -> Path:
    """Valkey from the wheel, or the system's Redis."""
    if name == "valkey":
        return valkey_program(None, Path())
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} is installed")
    return Path(found)


@pytest.fixture(scope="module", params=["valkey", "redis-server"])
def aftermath(request: pytest.FixtureRequest, localstack: LocalStack) -> Iterator[Aftermath]:
    """All prompts were submitted through both apis, one of each pair was killed, and all jobs have ended."""
    with open_composed(broker_program(request.param), localstack.endpoint, DOTENV) as composed:
        yield run_prompts(composed)


def run_prompts(composed: Composed) -> Aftermath:
    """Submit, kill one of each pair on the way, and wait."""
    asked = {f"prompt-{number}": prompt for number, prompt in enumerate(sample(COUNT, seed=4))}
    accepted: dict[str, str] = {}
    completed_before = 0
    with httpx2.Client(timeout=30) as client, ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda key: submit(client, composed, key, asked[key]), asked)
        for key, job_id in zip(asked, answers, strict=True):
            accepted[key] = job_id
            if len(accepted) == KILL_API_AT:
                composed.apis[0].kill()
            if len(accepted) == KILL_WORKER_AT:
                completed_before = count_completed(composed)
                composed.workers[0].kill()
        wait_until(lambda: count_completed(composed) == COUNT)
        jobs = [
            client.get(f"{composed.apis[1].url}/v1/media/jobs/{job_id}").raise_for_status().json()
            for job_id in accepted.values()
        ]
    return Aftermath(composed, accepted, asked, jobs, completed_before)


def submit(client: httpx2.Client, composed: Composed, key: str, prompt: Prompt) -> str:
    """The id of the job, from whichever api answers: as a client behind a load balancer, with its key."""
    body = {"prompt": prompt.text, "width": 64, "height": 64, "input": {"delay_seconds": 1}}
    deadline = time.monotonic() + END_SECONDS
    for number in itertools.count(int(key.rpartition("-")[2])):
        api = composed.apis[number % len(composed.apis)]
        assert time.monotonic() < deadline, "no api accepts the prompt"
        with suppress(httpx2.TransportError):
            answer = client.post(f"{api.url}/v1/media/generate", json=body, headers={"Idempotency-Key": key})
            if answer.status_code == httpx2.codes.ACCEPTED:
                return str(answer.json()["id"])
            assert answer.is_server_error, answer.text
    raise AssertionError


def count_completed(composed: Composed) -> int:
    """Jobs whose results are stored."""
    [row] = composed.query("SELECT count(*) AS n FROM jobs WHERE status = 'completed'")
    return int(row["n"])


def wait_until(is_so: Callable[[], bool]) -> None:
    """Return when it is; AssertionError when that takes too long."""
    deadline = time.monotonic() + END_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.1)


def locate(client: httpx2.Client, composed: Composed, media_id: str) -> str:
    """Where the api sends whoever asks for a picture."""
    answer = client.get(f"{composed.apis[1].url}/v1/media/content/{media_id}")
    assert answer.status_code == httpx2.codes.TEMPORARY_REDIRECT, answer.text
    return str(answer.headers["location"])


def altered(url: str) -> str:
    """The same URL with one digit of its signature changed."""
    head, name, signature = url.partition("X-Amz-Signature=")
    return f"{head}{name}{'1' if signature[0] == '0' else '0'}{signature[1:]}"


def test_every_prompt_is_completed_although_an_api_and_a_worker_were_killed(aftermath: Aftermath) -> None:
    composed, jobs = aftermath.composed, aftermath.jobs
    [again] = composed.query("SELECT count(*) AS n FROM jobs WHERE fence > 1")

    assert [part.exit_code for part in (*composed.apis, *composed.workers)] == [-9, None, -9, None]
    assert aftermath.completed_before < COUNT
    assert again["n"] > 0
    assert len({job["id"] for job in jobs}) == COUNT
    assert [job["status"] for job in jobs] == ["completed"] * COUNT
    assert [job["prompt"] for job in jobs] == [prompt.text for prompt in aftermath.asked.values()]


def test_no_promise_is_broken(aftermath: Aftermath) -> None:
    """Completed once, with its object and its checksum, and no process has said a secret."""
    composed = aftermath.composed
    given = composed.environments["api"]
    facts = Facts(
        jobs=composed.query(JOBS),
        events=composed.query("SELECT * FROM events ORDER BY job_id, sequence"),
        submissions=composed.query("SELECT * FROM submissions ORDER BY job_id, ordinal"),
        media=composed.query("SELECT * FROM media"),
        ledger=(),
        objects=composed.objects(),
        digests=composed.digests(),
        logs={part.name: part.log.read_text() for part in (*composed.apis, *composed.workers)},
        secrets=(
            given["FLEEK_DATABASE_URL"],
            Home(composed.folder / "home").secret_key_file.read_text().strip(),
        ),
        accepted=aftermath.accepted,
    )
    verdicts = {verdict.name: verdict for verdict in judge(facts)}

    assert {name: verdict.broken for name, verdict in verdicts.items() if verdict.broken} == {}
    assert verdicts["completed at most once"].checked == COUNT
    assert verdicts["what is stored is what its row says"].checked == COUNT
    assert {key.split("/")[1] for key in facts.objects} == {str(job["id"]) for job in facts.jobs}


def test_every_picture_is_fetched_by_a_pre_signed_url(aftermath: Aftermath) -> None:
    media = [result for job in aftermath.jobs for result in job["media"]]
    given = aftermath.composed.environments["api"]

    def fetch(result: Mapping[str, Any]) -> tuple[str, str]:
        picture = client.get(locate(client, aftermath.composed, result["id"]))
        assert str(picture.url).startswith(f"{given['FLEEK_STORAGE_PUBLIC_ENDPOINT']}/")
        return picture.headers["content-type"], hashlib.sha256(picture.content).hexdigest()

    with httpx2.Client(timeout=30) as client, ThreadPoolExecutor(4) as pool:
        fetched = list(pool.map(fetch, media))

    assert len(media) == COUNT
    assert fetched == [("image/png", result["sha256"]) for result in media]


def test_an_altered_url_is_refused(aftermath: Aftermath) -> None:
    first, second, *_ = (job["media"][0]["id"] for job in aftermath.jobs)
    with httpx2.Client(timeout=30) as client:
        url = locate(client, aftermath.composed, first)
        other = locate(client, aftermath.composed, second)
        swapped = f"{other.partition('?')[0]}?{url.partition('?')[2]}"
        statuses = [client.get(each).status_code for each in (url, altered(url), swapped)]

    assert statuses == [200, 403, 403]


async def test_an_expired_url_is_refused(aftermath: Aftermath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed as the api signs, for a second: the shortest life that can be configured is 30 s."""
    given = aftermath.composed.environments["api"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, given[name])
    storage = open_storage(
        given["FLEEK_STORAGE_URL"],
        signer=UrlSigner(b"of no use for S3, which signs by itself"),
        endpoint=given["FLEEK_STORAGE_PUBLIC_ENDPOINT"],
    )
    [row, *_] = aftermath.composed.query("SELECT key FROM media")
    brief, lasting = [
        await storage.sign(row["key"], expires_in=timedelta(seconds=seconds)) for seconds in (1, 600)
    ]
    await asyncio.sleep(2.1)
    async with httpx2.AsyncClient(timeout=30) as client:
        answers = [await client.get(signed.url) for signed in (lasting, brief)]

    # The first shows that nothing but its age speaks against the second.
    assert [answer.status_code for answer in answers] == [200, 403]
