"""Real api and worker processes that report to a Sentry of the test's own, as an operator starts them."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from tests.queueing import Queue, wait_until
from tests.sentry_receiver import KEY, SentryReceiver, open_receiver
from tests.workers import CELERY, FLEEK, STOP, Start

from fleek import __version__
from fleek.observability.reports import WITHHELD

PROMPT = "a lighthouse that nobody may know of"
SECRET = secrets.token_hex(16)
HIDDEN = (PROMPT.encode(), SECRET.encode())
API = (sys.executable, "-m", "fleek.cli.main", "api", "--port")
UVICORN = (sys.executable, "-m", "uvicorn", "fleek.main:app", "--port")


@pytest.fixture
def receiver() -> Iterator[SentryReceiver]:
    with open_receiver() as receiver:
        yield receiver


class Api:
    """One api process, with everything that it has said in one log."""

    def __init__(self, command: tuple[str, ...], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                (*command, str(self.port)), env=environment, cwd=log.parent, stdout=file, stderr=file
            )

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx2.get(f"http://127.0.0.1:{self.port}/livez", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False

    def generate(self) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {SECRET}", "Cookie": f"session={SECRET}", "X-Request-ID": "r-1"}
        body = {"prompt": PROMPT, "metadata": {"note": PROMPT}, "input": {}}
        url = f"http://127.0.0.1:{self.port}/v1/media/generate"
        return httpx2.post(url, json=body, headers=headers, timeout=60)


@pytest.fixture
def environment(
    tmp_path: Path, database_url: str, redis_url: str, receiver: SentryReceiver
) -> dict[str, str]:
    """An api that fails at each accept, and reports it."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("FLEEK_", "SENTRY_"))}
    return plain | {
        "FLEEK_HOME": str(tmp_path),
        "FLEEK_SECRET_KEY": SECRET,
        "FLEEK_DATABASE_URL": database_url,
        "FLEEK_REDIS_URL": redis_url,
        "FLEEK_STORAGE_URL": tmp_path.as_uri(),
        "FLEEK_FAILPOINTS": "accept.before_commit=fail",
        "SENTRY_DSN": receiver.dsn,
        "SENTRY_ENVIRONMENT": "staging",
        "SENTRY_TRACES_SAMPLE_RATE": "1",
    }


@pytest.mark.parametrize(
    "command", [pytest.param(API, id="fleek"), pytest.param(UVICORN, id="uvicorn", marks=pytest.mark.slow)]
)
async def test_a_request_that_ends_with_500_is_reported(
    command: tuple[str, ...], environment: dict[str, str], receiver: SentryReceiver, tmp_path: Path
) -> None:
    api = Api(command, environment, tmp_path / "api.log")
    try:
        await wait_until(api.is_up, within=60)
        statuses = {api.generate().status_code for _ in range(3)}
        event = receiver.wait_for(lambda event: event["tags"]["event"] == "request_crashed")
        timed = receiver.wait_for(lambda found: "generate" in found["transaction"], "transaction")
    finally:
        api.process.send_signal(signal.SIGTERM)
        api.process.wait(60)

    assert statuses == {500}
    assert (event["release"], event["environment"]) == (f"fleek@{__version__}", "staging")
    assert event["tags"]["process"] == "api"
    assert event["tags"]["request_id"] == "r-1"
    assert event["server_name"] == socket.gethostname()
    assert [error["type"] for error in event["exception"]["values"]] == ["FailpointError"]
    assert "request" not in event
    assert "user" not in event
    assert len(receiver.items()) == 1
    assert timed["transaction"] == "POST /v1/media/generate"
    assert timed["contexts"]["trace"]["status"] == "internal_error"
    assert [hidden for hidden in HIDDEN if hidden in receiver.raw] == []


@pytest.mark.parametrize(
    "trouble",
    [
        "slow",
        pytest.param("refusing", marks=pytest.mark.slow),
        pytest.param("away", marks=pytest.mark.slow),
    ],
)
async def test_an_api_answers_and_ends_however_sentry_is(
    trouble: str, environment: dict[str, str], receiver: SentryReceiver, tmp_path: Path
) -> None:
    receiver.delay, receiver.status = {"slow": (60, 200), "refusing": (0, 500), "away": (0, 200)}[trouble]
    if trouble == "away":
        environment |= {"SENTRY_DSN": f"http://{KEY}@127.0.0.1:9/42"}
    api = Api(API, environment, tmp_path / "api.log")
    try:
        await wait_until(api.is_up, within=60)
        statuses = {api.generate().status_code for _ in range(3)}
    finally:
        api.process.send_signal(signal.SIGTERM)
        code = api.process.wait(60)

    assert statuses == {500}
    assert code == -signal.SIGTERM  # as uvicorn ends after an orderly stop
    assert KEY not in api.log.read_text()


@pytest.mark.parametrize(
    "command", [pytest.param(FLEEK, id="fleek"), pytest.param(CELERY, id="celery", marks=pytest.mark.slow)]
)
async def test_an_attempt_that_ends_with_an_error_which_nobody_expected_is_reported(
    command: tuple[str, ...], queue: Queue, start: Start, receiver: SentryReceiver
) -> None:
    job = await queue.accept(model="demo", prompt=PROMPT, metadata={"note": PROMPT})
    worker = start(command, failpoints="output.before_put=fail@1", sentry_dsn=receiver.dsn, secret_key=SECRET)
    await worker.started()
    event = receiver.wait_for(lambda event: event["tags"]["event"] == "attempt_crashed")
    worker.send(signal.SIGTERM)
    code = await worker.ended(within=4 * STOP)

    assert code == 0
    assert event["tags"]["process"] == "worker"
    assert event["tags"]["job_id"] == str(job.id)
    assert (event["tags"]["attempt"], event["tags"]["model"], event["tags"]["provider"]) == (
        "1",
        "demo",
        "demo",
    )
    assert event["environment"] == "production"
    assert [error["type"] for error in event["exception"]["values"]] == ["FailpointError"]
    assert [hidden for hidden in HIDDEN if hidden in receiver.raw] == []


@pytest.fixture
def broken_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package whose provider fails in a way that no provider should."""
    folder = tmp_path / "packages"
    (folder / "broken-1.dist-info").mkdir(parents=True)
    (folder / "broken-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: broken\nVersion: 1\n"
    )
    (folder / "broken-1.dist-info" / "entry_points.txt").write_text(
        "[fleek.providers]\nbroken = broken:Broken\n"
    )
    lines = ("class Broken:", "    @classmethod", "    def from_config(cls, config):")
    (folder / "broken.py").write_text("\n".join((*lines, f"        raise LookupError({PROMPT!r})\n")))
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.usefixtures("broken_provider")
async def test_a_worker_that_cannot_start_for_no_known_reason_reports_it(
    start: Start, receiver: SentryReceiver
) -> None:
    worker = start(sentry_dsn=receiver.dsn)
    code = await worker.ended(within=60)
    event = receiver.wait_for(lambda event: event["tags"]["event"] == "worker_loop_failed")

    assert code == 1
    assert [(error["type"], error["value"]) for error in event["exception"]["values"]] == [
        ("LookupError", WITHHELD)
    ]


@pytest.mark.usefixtures("broken_provider")
def test_an_api_that_cannot_start_for_no_known_reason_reports_it(
    environment: dict[str, str], receiver: SentryReceiver, tmp_path: Path
) -> None:
    api = Api(API, environment | {"PYTHONPATH": os.environ["PYTHONPATH"]}, tmp_path / "api.log")
    code = api.process.wait(60)

    [event] = receiver.items()
    assert code == 3
    assert (event["tags"]["process"], event["tags"]["event"]) == ("api", "api_start_failed")


def test_without_a_dsn_the_sdk_is_not_even_loaded(environment: dict[str, str], tmp_path: Path) -> None:
    del environment["SENTRY_DSN"]
    code = (
        "import sys, asyncio, fleek.tasks.celery\n"
        "from fleek.main import app\n"
        "async def live():\n"
        "    async with app.router.lifespan_context(app):\n"
        "        print(sorted(name for name in sys.modules if name.startswith('sentry')))\n"
        "asyncio.run(live())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def doctor(environment: dict[str, str], folder: Path) -> tuple[int, str, str]:
    """Exit code and words of `fleek doctor --test-error`."""
    done = subprocess.run(
        [sys.executable, "-m", "fleek.cli.main", "doctor", "--test-error"],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_doctor_sends_a_test_error(
    environment: dict[str, str], receiver: SentryReceiver, tmp_path: Path
) -> None:
    code, said, _ = doctor(environment, tmp_path)

    [event] = receiver.items()
    assert code == 0
    assert said.startswith("ok")
    assert event["event_id"] in said
    assert event["tags"] == {"process": "doctor", "event": "test_error"}


def test_the_doctor_says_when_sentry_refuses(
    environment: dict[str, str], receiver: SentryReceiver, tmp_path: Path
) -> None:
    receiver.status = 403
    code, said, _ = doctor(environment, tmp_path)

    assert code == 1
    assert "refused the event with status 403" in said
    assert "check SENTRY_DSN" in said
    assert KEY not in said


def test_the_doctor_names_the_dsn_that_is_missing(environment: dict[str, str], tmp_path: Path) -> None:
    del environment["SENTRY_DSN"]
    code, _, said = doctor(environment, tmp_path)

    assert code == 2
    assert said.startswith("error: SENTRY_DSN: is not set")
