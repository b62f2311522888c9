"""How the command line talks to a Fleek: find it, ask it, survive a lost reply.

Every request here may be repeated safely: reads by their nature, a cancel because it is idempotent, and the
writes that make or restart a job because they carry an idempotency key.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit
from uuid import UUID

import typer

from fleek.cli.exits import CommandError, ExitCode, unreachable, usage_error
from fleek.cli.hosts import is_loopback
from fleek.core.home import Home, default_home

UrlOption = typer.Option(
    "--url", envvar="FLEEK_URL", help="Base URL of a Fleek; unset: the one that runs here"
)

_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 15.0
_STREAM_SILENCE_SECONDS = 20.0
"""An event stream says something every 15 s; one that is silent for longer is dead."""
_ATTEMPTS = 6
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 2.0
_TRY_AGAIN = frozenset({408, 425, 429, 502, 503, 504})
_SERVER_ERROR = 500
_START_HINT = "start one with script/up (or `fleek up`), or name one with --url"
_NAMES_A_HOME = {".env": r"(?im)^\s*(export\s+)?FLEEK_HOME\s*=", "fleek.toml": r"(?m)^\s*home\s*="}


def open_client(url: str | None) -> Client:
    """A client of the Fleek at `url`, or of the one that runs on this machine."""
    return Client(normalise_url(url) if url else find_local_url())


def normalise_url(url: str) -> str:
    """The base URL without a slash at its end; raises a usage error for what is none."""
    parts = urlsplit(url)
    try:
        is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
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


def model_path(name: str) -> str:
    """The path of a model, whose name may hold slashes."""
    return f"/v1/models/{quote(name, safe='/')}"


class Client:
    """One Fleek, over HTTP. Closes its connections at the end of a `with` block."""

    def __init__(self, base_url: str) -> None:
        import httpx2  # noqa: PLC0415  0.2 s, which commands that only print help do not pay

        self.base_url = base_url
        self._http = httpx2
        self._client = httpx2.Client(
            base_url=base_url,
            timeout=httpx2.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            # A proxy that the environment names reaches other machines, not this one.
            trust_env=not is_loopback(urlsplit(base_url).hostname or ""),
            headers={"Accept": "application/json", "User-Agent": "fleek-cli"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401  JSON
        """The JSON of a resource."""
        return self._json(self.request("GET", path, params=params))

    def post(
        self, path: str, body: object = None, *, key: str | None = None
    ) -> tuple[Any, Mapping[str, str], int]:
        """The JSON, the headers and the status of a write that may be repeated."""
        headers = {} if key is None else {"Idempotency-Key": key}
        response = self.request("POST", path, headers=headers, **({} if body is None else {"json": body}))
        return self._json(response), response.headers, response.status_code

    def request(self, method: str, path: str, **options: Any) -> Any:  # noqa: ANN401  what httpx2 takes and gives
        """Send until an answer comes. Raises CommandError for a refusal, or when none comes."""
        attempt, has_begun = 0, False
        while True:
            attempt += 1
            pause = min(_FIRST_PAUSE * 2.0 ** (attempt - 1), _LONGEST_PAUSE)
            try:
                response = self._client.request(method, path, **options)
            except self._http.TransportError as error:
                # Nobody was there from the start: say so at once. But a request that may have arrived is
                # worth repeating, even when the server is gone for a moment.
                has_begun = has_begun or not isinstance(error, _never_connected(self._http))
                if attempt == _ATTEMPTS or not has_begun:
                    raise self._unreachable(
                        error, code="no_answer" if has_begun else "unreachable"
                    ) from error
            else:
                if attempt == _ATTEMPTS or not _is_temporary(response):
                    return self._checked(response)
                has_begun = True
                pause = max(pause, min(_retry_after(response), _LONGEST_PAUSE))
            time.sleep(pause)

    @contextmanager
    def stream(self, url: str, *, headers: Mapping[str, str] | None = None) -> Iterator[Any]:
        """An open answer whose body is read piece by piece; follows redirects. Not repeated."""
        timeout = self._http.Timeout(_STREAM_SILENCE_SECONDS, connect=_CONNECT_SECONDS)
        try:
            with self._client.stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=timeout
            ) as response:
                if not response.is_success:
                    response.read()
                yield self._checked(response)
        except (self._http.TransportError, self._http.TooManyRedirects, self._http.InvalidURL) as error:
            raise self._unreachable(error) from error

    def events(self, path: str, headers: Mapping[str, str]) -> Iterator[Any]:
        """Server-sent events of one stream, until it ends: each has `event`, `data` and `id`."""
        with self.stream(path, headers=headers) as response:
            yield from self._http.EventSource(response)

    def status(
        self, job_id: str, *, wait: int | None = None, tag: str | None = None
    ) -> tuple[Mapping[str, Any] | None, str | None]:
        """The light status and its tag; None for a status that still has the tag after `wait` seconds."""
        headers = {} if tag is None else {"If-None-Match": tag}
        params = {} if wait is None else {"wait": wait}
        response = self.request("GET", f"/v1/media/status/{job_id}", params=params, headers=headers)
        if response.status_code == 304:  # noqa: PLR2004  Not Modified
            return None, tag
        return self._json(response), response.headers.get("etag")

    def _unreachable(self, error: Exception, code: str = "unreachable") -> CommandError:
        message = f"{self.base_url} does not answer: {_reason(error)}"
        return CommandError(message, exit_code=ExitCode.UNREACHABLE, code=code, hint="is it running there?")

    def _checked(self, response: Any) -> Any:  # noqa: ANN401  httpx2's response, which is imported lazily
        """The response, if it is a success; raises what it says otherwise."""
        if response.is_success or response.status_code == 304:  # noqa: PLR2004  Not Modified
            return response
        raise refusal(response.status_code, _document(response), self.base_url)

    def _json(self, response: Any) -> Any:  # noqa: ANN401  httpx2's response
        try:
            return response.json()
        except ValueError:
            raise unreachable(f"{self.base_url} answers, but not as Fleek does", "check --url") from None


def _never_connected(http: Any) -> tuple[type[Exception], ...]:  # noqa: ANN401  the module, which is imported lazily
    return (http.ConnectError, http.ConnectTimeout, http.ProxyError, http.UnsupportedProtocol)


def refusal(status: int, document: Mapping[str, Any] | None, base_url: str) -> CommandError:
    """A server's refusal as an error of the command."""
    is_ours = status >= _SERVER_ERROR or status in _TRY_AGAIN
    exit_code = ExitCode.UNREACHABLE if is_ours else ExitCode.USAGE
    if document is None:
        message = f"{base_url} answers {status}, but not as Fleek does"
        return CommandError(message, exit_code=exit_code, code="unexpected_answer", hint="check --url")
    code = str(document.get("code") or "unknown")
    message = str(document.get("detail") or document.get("title") or f"The request was refused with {status}")
    return CommandError(message, exit_code=exit_code, code=code, facts=document)


def _document(response: Any) -> Mapping[str, Any] | None:  # noqa: ANN401  httpx2's response
    """The problem in an answer; None when it holds none."""
    if "json" not in response.headers.get("content-type", ""):
        return None
    try:
        document = response.json()
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _is_temporary(response: Any) -> bool:  # noqa: ANN401  httpx2's response
    if response.status_code in _TRY_AGAIN:
        return True
    return response.status_code == 409 and (_document(response) or {}).get("code") == "idempotency_in_flight"  # noqa: PLR2004  Conflict


def _retry_after(response: Any) -> float:  # noqa: ANN401  httpx2's response
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdigit() else 0.0


def _reason(error: Exception) -> str:
    """Why a request failed, in a few words."""
    if "Timeout" in type(error).__name__:
        return "no answer in time"
    return str(error).removeprefix("[Errno ").partition("] ")[2] or str(error) or type(error).__name__
