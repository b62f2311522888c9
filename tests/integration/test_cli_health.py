"""`fleek health`: what a container's probe learns from it, against real ports."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fleek.cli.main import execute
from fleek.tasks.probe import Check, ProbeServer


def well() -> str | None:
    return None


def unwell() -> str | None:
    return "the database does not answer"


@contextmanager
def probed(is_live: Check = well, is_ready: Check = well) -> Iterator[int]:
    """The port of a server in a thread of its own: the command under test blocks this one."""
    ready, ports = threading.Event(), list[int]()
    over: list[Callable[[], object]] = []

    async def serve() -> None:
        server, end = ProbeServer(is_live, is_ready), asyncio.Event()
        loop = asyncio.get_running_loop()
        over.append(lambda: loop.call_soon_threadsafe(end.set))
        ports.append(await server.start("127.0.0.1", 0))
        ready.set()
        await end.wait()
        await server.aclose()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(20)
    yield ports[0]
    over[0]()
    thread.join()


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A folder without files, and no setting in the environment."""
    for name in ("HOST", "PORT", "WORKER_HOST", "WORKER_PORT"):
        monkeypatch.delenv(f"FLEEK_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def test_one_that_is_ready_is_told_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with probed() as port:
        code = execute(["health", f"http://127.0.0.1:{port}"])

    assert code == 0
    assert capsys.readouterr() == ("ok\n", "")


def test_one_that_is_not_ready_says_why_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    with probed(is_ready=unwell) as port:
        code = execute(["health", f"http://127.0.0.1:{port}/"])
        live = execute(["health", "--live", f"http://127.0.0.1:{port}"])
    said = capsys.readouterr()

    assert (code, live) == (1, 0)
    assert said.err == f"error: http://127.0.0.1:{port}/readyz answers 503: the database does not answer\n"


def test_nobody_there_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    code = execute(["health", f"http://127.0.0.1:{port}"])

    assert code == 1
    assert f"http://127.0.0.1:{port}/readyz does not answer" in capsys.readouterr().err


@pytest.mark.parametrize(("check", "code"), [(well, 0), (unwell, 1)])
def test_json_goes_to_stdout_and_a_problem_to_stderr(
    check: Check, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with probed(is_ready=check) as port:
        url = f"http://127.0.0.1:{port}"
        exit_code = execute(["health", "--json", url])
    said = capsys.readouterr()

    assert exit_code == code
    if code == 0:
        assert json.loads(said.out) == {"ok": True, "url": f"{url}/readyz"}
    else:
        assert said.out == ""
        assert json.loads(said.err)["code"] == "unhealthy"


@pytest.mark.parametrize(("flags", "role"), [((), ""), (("--worker",), "WORKER_")], ids=["api", "worker"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])  # noqa: S104  asked, not bound
def test_without_a_url_it_asks_the_process_of_this_environment(
    flags: tuple[str, ...], role: str, host: str, environment: pytest.MonkeyPatch
) -> None:
    with probed() as port:
        environment.setenv(f"FLEEK_{role}HOST", host)
        environment.setenv(f"FLEEK_{role}PORT", str(port))

        assert execute(["health", *flags]) == 0


@pytest.mark.parametrize(("flags", "role"), [((), ""), (("--worker",), "worker_")], ids=["api", "worker"])
def test_a_file_of_the_folder_may_name_the_port(flags: tuple[str, ...], role: str) -> None:
    with probed() as port:
        Path("fleek.toml").write_text(f"{role}port = {port}\n")

        assert execute(["health", *flags]) == 0


def test_a_worker_without_a_port_is_an_error_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["health", "--worker"]) == 2
    assert "FLEEK_WORKER_PORT is not set" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--worker", "http://127.0.0.1:1"], ["ftp://127.0.0.1"], ["http://127.0.0.1:1?x=1"]]
)
def test_what_makes_no_sense_is_refused(arguments: list[str]) -> None:
    assert execute(["health", *arguments]) == 2


def test_it_loads_nothing_that_a_probe_every_few_seconds_should_not_pay_for(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("FLEEK_PORT", "1")
    heavy = "{'fastapi', 'sqlalchemy', 'celery', 'structlog', 'pydantic_settings'}"
    code = f"""
import sys
from fleek.cli.main import execute
execute(["health"])
print(sorted({heavy} & set(sys.modules)))
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert loaded.stdout == "[]\n"
