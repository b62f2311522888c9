"""Which credentials S3 is asked with, and when they end.

Static keys come first, then what a cloud gives to what runs in it: a web identity (EKS), the
container's role (ECS, EKS Pod Identity), the instance's role (EC2). obstore has the same chain but
keeps to itself when temporary credentials end, and a signed URL ends with the credentials that
signed it: so they are fetched here.

Protocols: https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html,
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html,
https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from fleek.core.errors import ConfigurationError
from fleek.storage.base import StorageError, StorageRefusedError

UNKNOWN_LIFE = timedelta(minutes=5)
"""What is signed with temporary credentials whose end nobody told lives at most this long."""

_CONTAINER_HOST = "http://169.254.170.2"
_INSTANCE_HOST = "http://169.254.169.254"
_CONTAINER_ADDRESSES = frozenset({"169.254.170.2", "169.254.170.23", "fd00:ec2::23"})
_METADATA_TIMEOUT = httpx2.Timeout(3, connect=1)
_STS_TIMEOUT = httpx2.Timeout(5, connect=2)
_TRIES = 2
FETCH_SECONDS = 10.0
"""For all of a source's requests: a call to the store that needs new credentials has time left for itself."""
_NO_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where a role gives credentials"
_NO_PROFILES = (
    '; profiles are not read, but `eval "$(aws configure export-credentials --format env)"` sets one'
)
_XML_VALUE = r"<{0}>([^<]+)</{0}>"
_ERROR_CODE = re.compile(r"<Code>(\w{3,60})</Code>")
_HOP_LIMIT = " (in a container, the instance's hop limit for metadata has to be 2)"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A key pair, and the token that temporary ones carry."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None
    """Aware. None with a token: they end, but nobody told when."""

    def life_left(self, now: datetime) -> timedelta | None:
        """How long they can be relied on from `now` on; None for keys that do not end."""
        if self.expires_at is not None:
            return self.expires_at - now
        return None if self.token is None else UNKNOWN_LIFE


CredentialSource = Callable[[], Credentials]
"""Fetches credentials over the network, in seconds; raises StorageError. Not where an event loop runs."""


class _InTroubleError(StorageError):
    """There is a source, and it may give credentials later."""


def find_source(
    environment: Mapping[str, str], region: str, seconds: float = FETCH_SECONDS
) -> CredentialSource:
    """The first source that the environment names, else the instance's role; it gives up after `seconds`.

    Raises ConfigurationError for half a key pair and for a container's URI that would leak its token.
    """
    given = {name: value for name, value in environment.items() if value}
    static = _static(given)
    if static is not None:
        return lambda: static
    if "AWS_WEB_IDENTITY_TOKEN_FILE" in given and "AWS_ROLE_ARN" in given:
        return partial(_fetch, _WebIdentity.from_environment(given, region), seconds)
    if "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI" in given or "AWS_CONTAINER_CREDENTIALS_FULL_URI" in given:
        return partial(_fetch, _Container.from_environment(given), seconds)
    return partial(_fetch, _Instance.from_environment(given), seconds)


def _static(given: Mapping[str, str]) -> Credentials | None:
    key, secret = given.get("AWS_ACCESS_KEY_ID"), given.get("AWS_SECRET_ACCESS_KEY")
    if key is None and secret is None:
        return None
    if key is None or secret is None:
        missing = "AWS_ACCESS_KEY_ID" if key is None else "AWS_SECRET_ACCESS_KEY"
        message = (
            f"{missing} is not set: a key pair is both, such as AWS_ACCESS_KEY_ID=AKIA... and its secret"
        )
        raise ConfigurationError(message)
    token = given.get("AWS_SESSION_TOKEN")
    ends = given.get("AWS_CREDENTIAL_EXPIRATION") if token else None
    return Credentials(key, secret, token, None if ends is None else _configured_moment(ends))


def _configured_moment(text: str) -> datetime:
    try:
        return _moment(text)
    except ValueError:
        message = f"AWS_CREDENTIAL_EXPIRATION is no time: {text!r}; it looks like 2030-01-31T12:00:00Z"
        raise ConfigurationError(message) from None


@dataclass(frozen=True, slots=True)
class _WebIdentity:
    """A role that a token of the platform stands for."""

    url: str
    role: str
    session: str
    token_file: Path

    @classmethod
    def from_environment(cls, given: Mapping[str, str], region: str) -> _WebIdentity:
        return cls(
            given.get("AWS_ENDPOINT_URL_STS") or given.get("AWS_STS_ENDPOINT") or _usual_sts(region),
            given["AWS_ROLE_ARN"],
            given.get("AWS_ROLE_SESSION_NAME", "fleek"),
            Path(given["AWS_WEB_IDENTITY_TOKEN_FILE"]),
        )

    async def fetch(self) -> Credentials:
        form = {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "RoleArn": self.role,
            "RoleSessionName": self.session,
            "WebIdentityToken": _read(self.token_file),
        }
        async with httpx2.AsyncClient(timeout=_STS_TIMEOUT) as client:
            answer = await _ask(client, "POST", self.url, data=form)
        found = {
            name: re.search(_XML_VALUE.format(name), answer.text)
            for name in ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")
        }
        document = {name: match[1] for name, match in found.items() if match is not None}
        return _parse(document | {"Token": document.get("SessionToken")}, self.url)


@dataclass(frozen=True, slots=True)
class _Container:
    """The role of an ECS task or of a pod."""

    url: str
    token: str | None = field(repr=False)
    token_file: Path | None

    @classmethod
    def from_environment(cls, given: Mapping[str, str]) -> _Container:
        relative = given.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        url = f"{_CONTAINER_HOST}{relative}" if relative else given["AWS_CONTAINER_CREDENTIALS_FULL_URI"]
        _require_close(url)
        file = given.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
        return cls(url, given.get("AWS_CONTAINER_AUTHORIZATION_TOKEN"), Path(file) if file else None)

    async def fetch(self) -> Credentials:
        token = _read(self.token_file) if self.token_file is not None else self.token
        headers = {} if token is None else {"Authorization": token}
        async with _metadata_client() as client:
            return _parse(await _ask_json(client, self.url, headers), self.url)


@dataclass(frozen=True, slots=True)
class _Instance:
    """The role of a virtual machine, by the second version of its metadata service."""

    url: str | None
    remedy: str

    @classmethod
    def from_environment(cls, given: Mapping[str, str]) -> _Instance:
        remedy = _NO_KEYS + (_NO_PROFILES if _has_profile(given) else "")
        if given.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
            return cls(None, remedy)
        endpoint = given.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or given.get("AWS_METADATA_ENDPOINT")
        return cls((endpoint or _INSTANCE_HOST).rstrip("/"), remedy)

    async def fetch(self) -> Credentials:
        if self.url is None:
            raise StorageRefusedError("there are no credentials for S3", self.remedy)
        try:
            return await self._ask(self.url)
        except _InTroubleError:
            raise
        except StorageError as error:
            message = f"there are no credentials for S3: no key is set, and {error.message}"
            raise StorageRefusedError(message, self.remedy) from None

    @staticmethod
    async def _ask(url: str) -> Credentials:
        roles = f"{url}/latest/meta-data/iam/security-credentials/"
        async with _metadata_client() as client:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "600"}
            session = (await _ask(client, "PUT", f"{url}/latest/api/token", headers=lifetime)).text
            headers = {"X-aws-ec2-metadata-token": session}
            role = (await _ask(client, "GET", roles, headers=headers)).text.partition("\n")[0].strip()
            return _parse(await _ask_json(client, f"{roles}{role}", headers), roles)


def _usual_sts(region: str) -> str:
    if region in {"", "auto"}:
        return "https://sts.amazonaws.com"
    return f"https://sts.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"


def _has_profile(given: Mapping[str, str]) -> bool:
    """Whether somebody who knows AWS's own tools may think that there are credentials."""
    usual = Path(given["HOME"], ".aws", "credentials") if "HOME" in given else None
    file = given.get("AWS_SHARED_CREDENTIALS_FILE") or usual
    return "AWS_PROFILE" in given or (file is not None and Path(file).exists())


def _fetch(source: _WebIdentity | _Container | _Instance, seconds: float) -> Credentials:
    """What a source gives, however slowly it drips: obstore's threads and the cache's lock wait for it."""

    async def fetch() -> Credentials:
        async with asyncio.timeout(seconds):
            return await source.fetch()

    try:
        return asyncio.run(fetch())
    except TimeoutError:
        raise _InTroubleError(f"{source.url} gives no credentials: not within {seconds:g} s") from None


def _metadata_client() -> httpx2.AsyncClient:
    # A proxy has another machine's metadata.
    return httpx2.AsyncClient(timeout=_METADATA_TIMEOUT, trust_env=False)


async def _ask(client: httpx2.AsyncClient, method: str, url: str, **request: Any) -> httpx2.Response:  # noqa: ANN401  the client's own arguments
    """The answer 200, at the second try at the latest; StorageError names the URL, never what was sent."""
    reason, kind = "", StorageError
    for _ in range(_TRIES):
        try:
            answer = await client.request(method, url, **request)
        except httpx2.ReadTimeout:
            reason = "ReadTimeout" + (_HOP_LIMIT if method == "PUT" else "")
            continue
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            reason = type(error).__name__
            continue
        if answer.status_code == httpx2.codes.OK:
            return answer
        reason, kind = _reason(answer), _InTroubleError if _is_passing(answer) else StorageError
        if answer.is_client_error:
            break
    raise kind(f"{url} gives no credentials: {reason}")


def _is_passing(answer: httpx2.Response) -> bool:
    return answer.is_server_error or answer.status_code == httpx2.codes.TOO_MANY_REQUESTS


def _reason(answer: httpx2.Response) -> str:
    """The status, and the code that STS gives beside it; the rest of an answer may repeat what was sent."""
    code = _ERROR_CODE.search(answer.text)
    return f"{answer.status_code} {answer.reason_phrase}".strip() + (f" ({code[1]})" if code else "")


async def _ask_json(client: httpx2.AsyncClient, url: str, headers: Mapping[str, str]) -> Mapping[str, Any]:
    answer = await _ask(client, "GET", url, headers=headers)
    try:
        document = answer.json()
    except ValueError:
        document = None
    return document if isinstance(document, dict) else {}


def _parse(document: Mapping[str, Any], source: str) -> Credentials:
    try:
        key, secret = (_word(document, name) for name in ("AccessKeyId", "SecretAccessKey"))
        token, ends = (document[name] for name in ("Token", "Expiration"))
        return Credentials(key, secret, None if token is None else str(token), _moment(str(ends)))
    except (KeyError, ValueError):
        raise StorageError(f"{source} gives no credentials: it answered something else") from None


def _word(document: Mapping[str, Any], name: str) -> str:
    value = document[name]
    if not value or not isinstance(value, str):
        raise ValueError(name)
    return value


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise StorageError(f"cannot read the token {path}: {error.strerror}") from error
    except UnicodeError:
        raise StorageError(f"cannot read the token {path}: it is no text") from None


def _require_close(url: str) -> None:
    """The token goes there: over TLS, or no further than this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    is_close = host in {"localhost", *_CONTAINER_ADDRESSES} or _is_loopback(host)
    if not host or (parts.scheme != "https" and not (parts.scheme == "http" and is_close)):
        message = (
            "AWS_CONTAINER_CREDENTIALS_FULL_URI: must be https, or http at this machine, such as "
            "http://169.254.170.23/v1/credentials"
        )
        raise ConfigurationError(message)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
