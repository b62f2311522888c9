"""LocalStack for tests: the S3 of docker-compose.yml in host mode, in an environment of its own.

- `localstack`: its endpoint and log, started once a session when a test asks; skips without a Python 3.11.
- `localstack_bucket`: an empty bucket of its own for every test, with the credentials in the environment.
- `python -m tests.localstack` runs one by hand, until its standard input ends.

LocalStack knows one secret key (`test`), checks the signatures of URLs but not those in headers, and gives
objects to whoever asks without any signature: what it refuses, S3 refuses, and not the other way round.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fleek.local.process import Program, spawn
from tests.s3 import Bucket, connect_s3

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "requirements" / "localstack.txt"
FOLDER = ROOT / ".tools" / "localstack"
ACCESS_KEY = SECRET_KEY = "test"
MISSING = "LocalStack runs on Python 3.11 only, and no python3.11 was found"
_LAST_WORDS = 800
INSTALL_SECONDS, START_SECONDS = 600, 120
"""Bounds against hangs: installing takes about 20 s, starting about 5 s."""


class InstallError(Exception):
    """LocalStack could not be installed; what was begun is made anew the next time."""

    def __init__(self, said: str) -> None:
        end = said.strip()[-_LAST_WORDS:]
        super().__init__(
            f"LocalStack could not be installed from requirements/localstack.txt: {end}\n"
            "It is fetched once, from the package index: is there a network, and a proxy or a mirror to set?"
        )


@dataclass(frozen=True, slots=True)
class LocalStack:
    """One that runs."""

    endpoint: str
    log: Path
    """With a line for each request: `AWS s3.PutObject => 200`."""


def find_python() -> str | None:
    """A Python 3.11: ours, or what the PATH calls so."""
    if sys.version_info[:2] == (3, 11):
        return getattr(sys, "_base_executable", sys.executable)
    found = shutil.which("python3.11")
    question = [found, "-c", "import sys; print(sys.executable)"]
    if (
        found is None
        or (answer := subprocess.run(question, capture_output=True, text=True, check=False)).returncode
    ):
        return None
    return answer.stdout.strip()


def ensure_installed(python: str) -> Path:
    """The interpreter of LocalStack's environment, which is made anew when its lock or its place changed."""
    FOLDER.parent.mkdir(exist_ok=True)
    ingredients = f"{ROOT}\n{python}\n{REQUIREMENTS.read_text()}"
    installed, interpreter = FOLDER / ".installed", FOLDER / "bin" / "python"
    # Two runs of the tests may come here at once.
    with (FOLDER.parent / "localstack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists() or installed.read_text() != ingredients:
            shutil.rmtree(FOLDER, ignore_errors=True)
            for command in _installation(python, interpreter):
                _install(command)
            installed.write_text(ingredients)
    return interpreter


def _install(command: Sequence[str]) -> None:
    """One step; InstallError with its last words, which mostly are those of the network."""
    try:
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "output", None) or str(error)
        raise InstallError(said if isinstance(said, str) else said.decode(errors="replace")) from error


def _installation(python: str, interpreter: Path) -> Sequence[Sequence[str]]:
    own = ROOT / ".tools" / "bin" / "uv"
    uv = shutil.which("uv") or (str(own) if own.exists() else None)
    lock = ["--quiet", "--require-hashes", "-r", str(REQUIREMENTS)]
    if uv is None:
        return [[python, "-m", "venv", str(FOLDER)], [str(interpreter), "-m", "pip", "install", *lock]]
    made = [uv, "venv", "--quiet", "--no-python-downloads", "--python", python, str(FOLDER)]
    return [made, [uv, "pip", "install", "--python", str(interpreter), *lock]]


@contextmanager
def running_localstack(interpreter: Path) -> Iterator[LocalStack]:
    """A server of its own. Its data lies in a temporary folder; it dies with this process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="fleek-localstack-", dir="/tmp") as folder:
        log = Path(folder) / "localstack.log"
        process = spawn(
            Program(
                name="localstack",
                command=[str(interpreter), "-m", "localstack.runtime.main"],
                pidfile=Path(folder) / "localstack.pid",
                environment=_environment(folder, port),
                log=log,
            )
        )
        try:
            _await_s3(f"http://127.0.0.1:{port}", log)
            yield LocalStack(f"http://127.0.0.1:{port}", log)
        finally:
            process.kill()


def _environment(folder: str, port: int) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": folder,
        "TMPDIR": folder,
        "FILESYSTEM_ROOT": f"{folder}/data",
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "SERVICES": "s3",
        "S3_SKIP_SIGNATURE_VALIDATION": "0",
        "DISABLE_EVENTS": "1",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "DNS_ADDRESS": "0",
    }


def _await_s3(endpoint: str, log: Path) -> None:
    """Return once it answers for a bucket: S3 itself is loaded by the first request."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if (
                httpx2.head(f"{endpoint}/no-such-bucket", timeout=START_SECONDS).status_code
                == httpx2.codes.NOT_FOUND
            ):
                return
        except httpx2.TransportError:
            pass
        assert time.monotonic() < deadline, f"LocalStack did not start: {log.read_text()}"
        time.sleep(0.1)


def connect(endpoint: str) -> Any:
    """boto3's client of one."""
    return connect_s3(endpoint, ACCESS_KEY, SECRET_KEY)


@pytest.fixture(scope="session")
def localstack() -> Iterator[LocalStack]:
    """The session's LocalStack."""
    python = find_python()
    if python is None:
        pytest.skip(MISSING)
    try:
        interpreter = ensure_installed(python)
    except InstallError as error:
        # Without a traceback, which would hide the one line that helps; not skipped, for CI must not be.
        pytest.fail(str(error), pytrace=False)
    with running_localstack(interpreter) as server:
        yield server


@pytest.fixture
def localstack_bucket(localstack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A new bucket, and the keys where Fleek finds them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    bucket = Bucket(f"bucket-{uuid.uuid4().hex[:12]}", localstack.endpoint, connect(localstack.endpoint))
    bucket.client.create_bucket(Bucket=bucket.name)
    return bucket


def main() -> int:
    """Run until the standard input ends; the exit code."""
    python = find_python()
    if python is None:
        sys.stderr.write(f"{MISSING}\n")
        return 1
    try:
        interpreter = ensure_installed(python)
    except InstallError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    with running_localstack(interpreter) as server:
        sys.stdout.write(f"{server.endpoint}\n")
        sys.stdout.flush()
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
