"""`fleek health`: one probe as a command, for containers that have no other client.

It runs every few seconds for as long as a container does, so it reads all settings, which takes as long again
as the rest of it, only where a file of this folder may have something to say.
"""

from __future__ import annotations

import json
import os
from http import HTTPStatus
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from fleek.cli.client import normalise_url
from fleek.cli.exits import CommandError, ExitCode, usage_error
from fleek.cli.hosts import is_loopback
from fleek.cli.http import Http, NoAnswerError
from fleek.cli.output import JsonOption, Output

_ANSWER_SECONDS = 4.0
"""Less than the time-out that engines give a probe."""
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  names to recognise, not to bind
_FILES = (".env", ".env.local", "fleek.toml")
_LOCALHOST, _API_PORT = "127.0.0.1", "8000"


def health(
    url: Annotated[
        str | None, typer.Argument(help="Base URL of an api or a worker; unset: this configuration's api")
    ] = None,
    *,
    worker: Annotated[
        bool, typer.Option("--worker", help="Ask the worker of this configuration instead")
    ] = False,
    live: Annotated[bool, typer.Option("--live", help="Ask /livez instead of /readyz")] = False,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Ask a process whether it is ready: exits with 0 if it is, and with 1 if not, for container probes."""
    if url is not None and worker:
        raise usage_error("A URL and --worker exclude each other", "the URL may be a worker's")
    base = normalise_url(url) if url is not None else _own_url("WORKER_" if worker else "")
    asked = f"{base}/{'livez' if live else 'readyz'}"
    status, detail = _ask(asked)
    if status != HTTPStatus.OK:
        raise _unhealthy(f"{asked} answers {status}" + (f": {detail}" if detail else ""))
    output = Output(as_json)
    if as_json:
        output.document({"ok": True, "url": asked})
    else:
        output.data("ok")


def _ask(url: str) -> tuple[int, str]:
    """The status of the answer, and what its body says is wrong."""
    http = Http(use_proxies=not is_loopback(urlsplit(url).hostname or ""))
    try:
        with http.open("GET", url, timeout=_ANSWER_SECONDS) as answer:
            return answer.status, _detail(answer.read())
    except NoAnswerError as error:
        raise _unhealthy(f"{url} does not answer: {error.reason}") from error


def _detail(body: bytes) -> str:
    try:
        document = json.loads(body)
    except ValueError:
        return ""
    return str(document.get("detail") or "") if isinstance(document, dict) else ""


def _unhealthy(message: str) -> CommandError:
    return CommandError(message, exit_code=ExitCode.FAILED, code="unhealthy")


def _own_url(role: str) -> str:
    """Where this configuration's process listens; `role` is the middle of its settings' names."""
    host, port = _own_address(role)
    if not port:
        hint = "such as 9100, for `fleek worker` and for this command alike"
        raise usage_error("FLEEK_WORKER_PORT is not set, so the worker has no port to ask", hint)
    host = _ANY_ADDRESS.get(host, host)
    return normalise_url(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


def _own_address(role: str) -> tuple[str, str]:
    host, port = os.environ.get(f"FLEEK_{role}HOST"), os.environ.get(f"FLEEK_{role}PORT")
    is_said = host is not None and port is not None
    if not is_said and any(Path(name).is_file() for name in _FILES):
        from fleek.settings import load_settings  # noqa: PLC0415  see the head of this module

        settings = load_settings()
        if role:
            return settings.worker_host, str(settings.worker_port or "")
        return settings.host, str(settings.port)
    return host or _LOCALHOST, port or ("" if role else _API_PORT)
