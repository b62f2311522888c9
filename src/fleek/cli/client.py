"""How the command line talks to a Fleek: find it, ask it, survive a lost reply.

Every request here may be repeated safely: reads by their nature, a cancel because it is idempotent, and the
writes that make or restart a job because they carry an idempotency key.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit
from uuid import UUID

import typer

from fleek.cli.exits import CommandError, ExitCode, unreachable, usage_error
from fleek.cli.hosts import is_loopback
from fleek.cli.http import Answer, Http, NoAnswerError, ServerEvent
from fleek.core.home import Home, default_home

UrlOption = typer.Option(
    "--url", envvar="FLEEK_URL", help="Base URL of a Fleek; unset: the one that runs here"
)

NO_ANSWER = "no_answer"
"""Code of an error after which nobody knows whether the server saw the request."""

_ANSWER_SECONDS = 15.0
_SILENCE_SECONDS = 20.0
"""An event stream says something every 15 s; one that is silent for longer is dead."""
_ATTEMPTS = 6
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 2.0
_TRY_AGAIN = frozenset({408, 425, 429, 502, 503, 504})
_START_HINT = "start one with script/up, name one with --url, or its home with FLEEK_HOME"
_NAMES_A_HOME = {".env": r"(?im)^\s*(export\s+)?FLEEK_HOME\s*=", "fleek.toml": r"(?m)^\s*home\s*="}


def open_client(url: str | None) -> Client:
    """A client of the Fleek at `url`, or of the one that runs on this machine."""
    return Client(normalise_url(url) if url else find_local_url())


def normalise_url(url: str) -> str:
    """The base URL without a slash at its end; raises a usage error for what is none."""
    parts = urlsplit(url)
    try:
        is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        is_url = is_url and parts.username is None
    except ValueError:
        is_url = False
    if not is_url or parts.query or parts.fragment:
        raise usage_error(f"{url!r} is not a base URL", "it looks like http://127.0.0.1:8000")
    return url.rstrip("/")


def find_local_url() -> str:
    """The URL of the Fleek that runs on this machine's home."""
    from fleek.local.instance import find_instance  # noqa: PLC0415  not needed with --url

    home = _local_home()
    instance = find_instance(home)
    if instance is None:
        raise CommandError(
            f"No Fleek is running on {home.path}",
            exit_code=ExitCode.UNREACHABLE,
            code="not_running",
            hint=_START_HINT,
        )
    return instance.url


def _local_home() -> Home:
    """The home by the environment, or by a file of this folder that names one.

    Reading all settings takes 0.4 s, so it is done only where a file has something to say about the home.
    """
    given = os.environ.get("FLEEK_HOME")
    if given:
        return Home(Path(given).expanduser().absolute())
    if _a_file_names_a_home():
        from fleek.settings import load_settings  # noqa: PLC0415  see above

        return load_settings().local
    return Home(default_home(os.environ, user_home=Path.home(), is_root=os.geteuid() == 0).absolute())


def _a_file_names_a_home() -> bool:
    for name, pattern in {**_NAMES_A_HOME, ".env.local": _NAMES_A_HOME[".env"]}.items():
        path = Path(name)
        if path.is_file() and re.search(pattern, path.read_text(errors="replace")):
            return True
    return False


def job_path(job_id: str, *more: str) -> str:
    """The path of a job; raises a usage error for what is no id, so that none can name another route."""
    try:
        UUID(job_id)
    except ValueError:
        raise usage_error(f"{job_id!r} is not the id of a job", "`fleek jobs ls` lists them") from None
    return "/".join((f"/v1/media/jobs/{job_id}", *more))


def model_path(name: str, *more: str) -> str:
    """The path of a model, whose name may hold slashes."""
    return "/".join((f"/v1/models/{quote(name, safe='/', errors='replace')}", *more))


class Client:
    """One Fleek, over HTTP."""

    def __init__(self, base_url: str, *, first_pause: float = _FIRST_PAUSE) -> None:
        self.base_url = base_url
        self._first_pause = first_pause
        # A proxy that the environment names reaches other machines, not this one.
        self._http = Http(use_proxies=not is_loopback(urlsplit(base_url).hostname or ""))

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401  JSON
        """The JSON of a resource."""
        return self._send("GET", path, query=query).json

    def post(self, path: str, body: object = None, *, key: str | None = None) -> Reply:
        """A write that may be repeated."""
        return self._send("POST", path, body=body, headers={} if key is None else {"Idempotency-Key": key})

    def status(
        self, job_id: str, *, wait: int | None = None, tag: str | None = None
    ) -> tuple[Mapping[str, Any] | None, str | None]:
        """The light status and its tag; None for a status that still has the tag after `wait` seconds."""
        headers = {} if tag is None else {"If-None-Match": tag}
        query = {} if wait is None else {"wait": wait}
        reply = self._send("GET", f"/v1/media/status/{job_id}", query=query, headers=headers)
        if reply.status == HTTPStatus.NOT_MODIFIED:
            return None, tag
        return reply.json, reply.headers.get("etag")

    def events(self, path: str, last_event_id: str | None) -> Iterator[ServerEvent]:
        """Events of one stream, until it ends."""
        headers = {"Accept": "text/event-stream"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        with self._stream(f"{self.base_url}{path}", headers) as answer:
            if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                raise unreachable(f"{self.base_url} answers, but not with a stream of events")
            yield from answer.events()

    def download(self, url: str) -> Iterator[bytes]:
        """The bytes behind a URL and its redirects."""
        with self._stream(url, {"Accept": "*/*"}) as answer:
            yield from answer.chunks()

    @contextmanager
    def _stream(self, url: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        """An open answer; not repeated."""
        try:
            with self._http.open("GET", url, headers=headers, timeout=_SILENCE_SECONDS) as answer:
                if not answer.is_success:
                    raise self._refusal(Reply(answer.status, answer.headers, answer.read()))
                yield answer
        except NoAnswerError as error:
            raise self._unreachable(error) from error

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Reply:
        """Send until an answer comes. Raises CommandError for a refusal, or when none comes."""
        url = f"{self.base_url}{path}" + (f"?{urlencode(query, errors='replace')}" if query else "")
        attempt, may_have_arrived = 0, False
        while True:
            attempt += 1
            pause = min(self._first_pause * 2.0 ** (attempt - 1), _LONGEST_PAUSE)
            try:
                reply = self._send_once(method, url, headers or {}, body)
            except NoAnswerError as error:
                # Nobody was there from the start: say so at once. But a request that may have arrived is
                # worth repeating, even when the server is gone for a moment.
                may_have_arrived = may_have_arrived or error.may_have_arrived
                if attempt == _ATTEMPTS or not may_have_arrived:
                    raise self._unreachable(error, may_have_arrived=may_have_arrived) from error
            else:
                if attempt == _ATTEMPTS or not reply.is_temporary:
                    return self._checked(reply)
                may_have_arrived = True
                pause = max(pause, min(reply.retry_after, _LONGEST_PAUSE))
            time.sleep(pause)

    def _send_once(self, method: str, url: str, headers: Mapping[str, str], body: object) -> Reply:
        content = None if body is None else json.dumps(body).encode()
        sent = {"Accept": "application/json", **headers}
        if content is not None:
            sent["Content-Type"] = "application/json"
        with self._http.open(method, url, headers=sent, body=content, timeout=_ANSWER_SECONDS) as answer:
            reply = Reply(answer.status, answer.headers, answer.read())
        if reply.is_truncated:
            reason = "its answer broke off"
            raise NoAnswerError(reason, may_have_arrived=True)
        return reply

    def _checked(self, reply: Reply) -> Reply:
        """The reply, if it is one of Fleek's and no refusal."""
        if reply.status == HTTPStatus.NOT_MODIFIED:
            return reply
        if not reply.is_success:
            raise self._refusal(reply)
        if reply.json is None:
            raise unreachable(f"{self.base_url} answers, but not as Fleek does", "check --url")
        return reply

    def _refusal(self, reply: Reply) -> CommandError:
        """What the server said as an error of the command."""
        exit_code = ExitCode.UNREACHABLE if reply.is_servers_fault else ExitCode.USAGE
        document = reply.json
        if not isinstance(document, dict):
            message = f"{self.base_url} answers {reply.status}, but not as Fleek does"
            return CommandError(message, exit_code=exit_code, code="unexpected_answer", hint="check --url")
        code = str(document.get("code") or "unknown")
        message = str(document.get("detail") or document.get("title") or f"Refused with {reply.status}")
        return CommandError(message, exit_code=exit_code, code=code, facts=document)

    def _unreachable(self, error: NoAnswerError, *, may_have_arrived: bool = True) -> CommandError:
        return CommandError(
            f"{self.base_url} does not answer: {error.reason}",
            exit_code=ExitCode.UNREACHABLE,
            code=NO_ANSWER if may_have_arrived else "unreachable",
            hint="is it running there?",
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401  any JSON value
        """The body as JSON; None when it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def is_success(self) -> bool:
        """2xx."""
        return self.status // 100 == 2  # noqa: PLR2004  the class of success

    @property
    def is_truncated(self) -> bool:
        """Whether it should be JSON and is none: a connection that breaks can look like an end."""
        claims_json = "json" in self.headers.get("content-type", "json")
        return self.is_success and claims_json and self.json is None

    @property
    def is_servers_fault(self) -> bool:
        """Whether the same request may work later."""
        return self.status >= HTTPStatus.INTERNAL_SERVER_ERROR or self.status in _TRY_AGAIN

    @property
    def is_temporary(self) -> bool:
        """Whether to ask again at once."""
        if self.status == HTTPStatus.CONFLICT:
            document = self.json
            return isinstance(document, dict) and document.get("code") == "idempotency_in_flight"
        return self.status in _TRY_AGAIN

    @property
    def retry_after(self) -> float:
        """Seconds that the server asked for; 0 where it did not."""
        value = self.headers.get("retry-after", "")
        return float(value) if value.isdecimal() else 0.0
