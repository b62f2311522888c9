"""The `[providers.replicate]` table, and where the token comes from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import httpx2
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from fleek.core.addresses import AllowList, address_or_none
from fleek.core.errors import ConfigurationError
from fleek.providers.base import ProviderUnavailable

TOKEN_VARIABLE = "REPLICATE_API_TOKEN"  # noqa: S105  the name of a variable, not a secret
DEFAULT_BASE_URL = "https://api.replicate.com/v1"
_MISSING = (
    f"The provider replicate needs a token: set {TOKEN_VARIABLE}, "
    "or token_file under [providers.replicate] in fleek.toml"
)


def _split(value: object) -> object:
    """`a,b` as well as a list: a variable of the environment is one string."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class ReplicateConfig(BaseModel):
    """What an operator may say about Replicate."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    base_url: str = DEFAULT_BASE_URL
    """Where the API is; a proxy, or something that speaks the same protocol, may stand in its place."""
    token: SecretStr | None = None
    token_file: Path | None = None
    """A file that holds nothing but the token."""
    allow_any: bool = False
    """Whether clients may ask for models that fleek.toml does not declare."""
    allow_hosts: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    """Hosts, addresses and networks that outputs may come from although they are not public."""

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> Self:
        """The table, checked; ConfigurationError names the key that is wrong, never its value."""
        try:
            return cls.model_validate(dict(table))
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(('providers.replicate', *map(str, item['loc'][:1])))}: "
                f"{item['msg'].removeprefix('Value error, ')}"
                for item in error.errors(include_input=False, include_url=False)
            )
            message = f"{problems} (known keys: {', '.join(cls.model_fields)})"
            raise ConfigurationError(message) from None

    @property
    def allowed(self) -> AllowList:
        """The hosts beside the public internet."""
        return AllowList.parse(self.allow_hosts)

    def load_token(self, environment: Mapping[str, str] = os.environ) -> SecretStr:
        """The token: of the table, of its file, or of the environment.

        Raises ProviderUnavailable where there is none, and ConfigurationError for one that cannot be sent.
        """
        token = self._given_token() or environment.get(TOKEN_VARIABLE, "").strip()
        if not token:
            raise ProviderUnavailable(_MISSING)
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise ConfigurationError(f"{TOKEN_VARIABLE}: a token has only visible ASCII characters")
        return SecretStr(token)

    def _given_token(self) -> str:
        if self.token is not None:
            return self.token.get_secret_value().strip()
        if self.token_file is None:
            return ""
        try:
            return self.token_file.expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            message = f"providers.replicate.token_file: cannot read {self.token_file}: {reason}"
            raise ConfigurationError(message) from None

    @field_validator("allow_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        AllowList.parse(value)
        return value

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        try:
            url = httpx2.URL(value)
        except httpx2.InvalidURL:
            url = httpx2.URL("")
        if url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.query or url.fragment:
            message = f"must be an address without user, query and fragment, such as {DEFAULT_BASE_URL}"
            raise ValueError(message)
        return value.rstrip("/")

    @model_validator(mode="after")
    def _never_in_clear(self) -> Self:
        url = httpx2.URL(self.base_url)
        if url.scheme == "http" and not (_is_near(url.host) or self.allowed.names(url.host)):
            message = "base_url must begin with https, or its host be in allow_hosts: it is sent the token"
            raise ValueError(message)
        return self


def _is_near(host: str) -> bool:
    """Whether a request to the host stays on this machine."""
    address = address_or_none(host)
    return host == "localhost" or (address is not None and address.is_loopback)
