"""Kinds of values that settings have."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr

from fleek.configuration.names import PREFIX
from fleek.configuration.urls import check_http_url

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _read_short_duration(value: object) -> object:
    """`90s`, `3m`, `1h` and `30d`, besides what pydantic reads by itself."""
    if isinstance(value, str) and value[-1:] in _UNITS and value[:-1].isdecimal():
        return timedelta(seconds=int(value[:-1]) * _UNITS[value[-1]])
    return value


Duration = Annotated[timedelta, BeforeValidator(_read_short_duration)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
QUEUE_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
SENTRY_ENVIRONMENT = r"^[^\s/]+$"
SENTRY_RELEASE = r"^[^\s/\\]+$"
RULES = {
    QUEUE_NAME: "must be 1 to 63 small letters, digits, - and _, and begin with a letter or digit",
    SENTRY_ENVIRONMENT: "must have no white space and no /",
    SENTRY_RELEASE: "must have no white space, no / and no \\",
}
"""What each pattern means."""
QueueName = Annotated[str, Field(pattern=QUEUE_NAME)]
HttpUrl = Annotated[str, AfterValidator(check_http_url)]


def at_least(shortest: str) -> AfterValidator:
    """A time that is no shorter than this one, such as `1h`."""
    bound = timedelta(seconds=int(shortest[:-1]) * _UNITS[shortest[-1]])

    def check(value: timedelta) -> timedelta:
        if value < bound:
            message = f"must be at least {shortest}"
            raise ValueError(message)
        return value

    return AfterValidator(check)


def secret_url(check: Callable[[str], str]) -> AfterValidator:
    """A URL that may hold a password, and passes `check`."""

    def check_secret(value: SecretStr | None) -> SecretStr | None:
        return None if value is None else SecretStr(check(value.get_secret_value()))

    return AfterValidator(check_secret)


def standard_name(name: str) -> AliasChoices:
    """Beside the one with our prefix, the variable that everybody knows such a setting by."""
    return AliasChoices(f"{PREFIX}{name}".lower(), name.lower())
