"""Every setting of Fleek, with a default that works untouched.

Sources, the strongest first: flags > environment (`FLEEK_`, nested with `__`, `*_FILE` for
secrets) > `.env.local` > `.env` > `fleek.toml` > the defaults here. Only `bootstrap` reads this.
"""

from __future__ import annotations

import os
import tomllib
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from fleek.core.errors import ConfigurationError
from fleek.core.home import Home, default_home

PREFIX = "FLEEK_"
CONFIG_FILE = "fleek.toml"
_SECRETS = ("secret_key", "database_url", "redis_url")
"""Settings that may hold a secret: each may also be given as a file's path, under `..._FILE`."""

_POSTGRES_SCHEMES = frozenset({"postgres", "postgresql", "postgresql+asyncpg"})

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _read_short_duration(value: object) -> object:
    """`90s`, `3m`, `1h` and `30d`, besides what pydantic reads by itself."""
    if isinstance(value, str) and value[-1:] in _UNITS and value[:-1].isdecimal():
        return timedelta(seconds=int(value[:-1]) * _UNITS[value[-1]])
    return value


Duration = Annotated[timedelta, BeforeValidator(_read_short_duration)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
QueueName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class ModelSettings(BaseModel):
    """One `[models."name"]` table of `fleek.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    provider: str
    """The name of an installed provider."""
    ref: str = ""
    """What the provider calls the model; empty means the model's own name."""
    queue: QueueName = "default"
    """The queue whose workers run it."""
    max_concurrency: Annotated[int, Field(ge=1)] | None = None
    """Jobs of the model that run at once, over all workers; unset: as many as there are slots."""
    max_paid_submissions: Annotated[int, Field(ge=1, le=20)] = 1
    """Orders that may be paid for one output, where it never became known what came of those before."""
    attempt_timeout: Duration = timedelta(minutes=10)
    """How long one attempt may take, such as `90s`, `3m` or `1h`."""
    price_per_output: Decimal | None = None
    """US dollars, shown by `GET /v1/models`."""
    description: str = ""
    """One line for people, shown by `GET /v1/models`."""


def _home_from_environment() -> Path:
    return default_home(os.environ, user_home=Path.home(), is_root=os.geteuid() == 0)


class Settings(BaseSettings):
    """Frozen; built once a process by `load_settings`."""

    model_config = SettingsConfigDict(
        use_attribute_docstrings=True,
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_file=(".env", ".env.local"),
        extra="ignore",
        frozen=True,
        toml_file=CONFIG_FILE,
    )

    home: Path = Field(default_factory=_home_from_environment)
    """Where a laptop's Fleek keeps its data."""
    secret_key: SecretStr | None = None
    """Signs cursors and local content URLs; generated once into the home when unset."""

    host: str = "127.0.0.1"
    """Address that the api listens on."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """Port that the api listens on."""
    public_url: str | None = None
    """Base of the links in answers, such as `https://media.example.com`; unset: the request's own host."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Host headers that are answered, beside loopback's names; `*` switches the check off."""

    database_url: SecretStr | None = None
    """`postgresql+asyncpg://...`; unset: the embedded PostgreSQL of the home."""
    database_pool_size: Annotated[int, Field(ge=1, le=1000)] = 20
    """Connections that a process keeps; multiply by the processes."""
    database_max_overflow: Annotated[int, Field(ge=0, le=1000)] = 10
    """Connections beyond the pool under load."""
    database_pool_recycle: Seconds = 3600
    """Seconds after which a connection is replaced."""
    database_pool_timeout: Seconds = 2
    """Seconds to wait for a free connection before answering 503."""
    database_connect_timeout: Seconds = 2
    """Seconds to wait for a new connection."""
    database_statement_timeout: Seconds = 10
    """Seconds that one statement may take."""
    database_lock_timeout: Seconds = 2
    """Seconds that one statement may wait for a lock."""
    database_idle_in_transaction_timeout: Seconds = 15
    """Seconds that a transaction may sit idle."""

    redis_url: SecretStr | None = None
    """`redis://...`; unset: the embedded Valkey of the home."""

    storage_url: str | None = None
    """`file:///path`, `s3://bucket/prefix` or `memory://`; unset: `media` in the home."""
    storage_endpoint: str | None = None
    """S3 endpoint that Fleek itself talks to; unset: the cloud's own."""
    storage_public_endpoint: str | None = None
    """S3 endpoint that clients reach, where it differs: signed URLs carry it."""
    storage_region: str = "us-east-1"
    """S3 region."""
    storage_path_style: bool = True
    """`https://endpoint/bucket/key` rather than `https://bucket.endpoint/key`."""

    content_url_ttl: Annotated[int, Field(ge=30, le=604_800)] = 600
    """Seconds that a signed content URL lives."""
    max_output_bytes: Annotated[int, Field(ge=1)] = 512 * 1024 * 1024
    """Bytes that one output may have."""
    variant_threads: Annotated[int, Field(ge=1, le=64)] = 2
    """Threads of a process that decode and scale pictures."""
    queues: Annotated[tuple[QueueName, ...], NoDecode, Field(min_length=1)] = ("default",)
    """Queues that a worker serves."""
    slots: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Jobs that one worker process runs at once."""
    lease: Seconds = 30
    """Seconds after which an unrenewed job counts as abandoned."""
    renew_interval: Seconds = 10
    """Seconds between two renewals of a lease."""
    claim_interval: Seconds = 1
    """Seconds after which a worker looks for work by itself, when no wake-up came."""
    rescue_interval: Seconds = 10
    """Seconds between two looks for abandoned jobs."""
    rescue_confirm_after: Seconds = 15
    """Seconds between the two looks that must both find a lease expired before its job is taken."""
    reconcile_grace: Seconds = 120
    """Seconds for which an order whose reply was lost is looked for, before its job ends as ambiguous."""
    shutdown_grace: Seconds = 25
    """Seconds that running jobs get to finish when a worker is told to stop; the rest are given back."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe records that are written."""
    log_format: Literal["auto", "json", "pretty"] = "auto"
    """`auto`: pretty on a terminal, else JSON."""

    models: dict[str, ModelSettings] = Field(default_factory=dict)
    """`[models."name"]` tables of `fleek.toml`."""
    providers: dict[str, dict[str, Any]] = Field(default_factory=dict, repr=False)
    """`[providers.name]` tables of `fleek.toml`."""

    @field_validator("queues", "allowed_hosts", mode="before")
    @classmethod
    def _accept_commas(cls, value: object) -> object:
        """`a,b` as well as a list."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @model_validator(mode="after")
    def _renew_in_time(self) -> Settings:
        """A lease that is renewed less than twice before it ends is lost to the first hiccup."""
        if self.renew_interval * 2 > self.lease:
            message = "FLEEK_RENEW_INTERVAL must be at most half of FLEEK_LEASE, such as 10 and 30"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _rescue_no_live_owner(self) -> Settings:
        """A live owner whose lease ran out, as in an outage of the database, renews between the two looks."""
        if self.rescue_confirm_after <= self.renew_interval + 1:
            message = (
                "FLEEK_RESCUE_CONFIRM_AFTER must be more than FLEEK_RENEW_INTERVAL and 1 s, such as 15 and 10"
            )
            raise ValueError(message)
        return self

    @field_validator("database_url", mode="after")
    @classmethod
    def _name_the_driver(cls, value: SecretStr | None) -> SecretStr | None:
        """The URL as most tools write it is taken too: SQLAlchemy's own form names the driver."""
        if value is None:
            return None
        scheme, separator, rest = value.get_secret_value().partition("://")
        if not separator or scheme not in _POSTGRES_SCHEMES:
            message = "must be a PostgreSQL URL, such as postgresql+asyncpg://user:password@host/name"
            raise ValueError(message)
        return SecretStr(f"postgresql+asyncpg://{rest}")

    @field_validator("home")
    @classmethod
    def _absolute_home(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  pydantic's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, `*_FILE`, dotenv files, `fleek.toml`."""
        return (
            init_settings,
            env_settings,
            _SecretFiles(settings_cls),
            dotenv_settings,
            TomlConfigSettingsSource(settings_cls),
        )

    @property
    def local(self) -> Home:
        """The names inside the home."""
        return Home(self.home)

    @property
    def resolved_database_url(self) -> str:
        """The database that is used."""
        return self.database_url.get_secret_value() if self.database_url else self.local.database_url

    @property
    def resolved_redis_url(self) -> str:
        """The broker that is used."""
        return self.redis_url.get_secret_value() if self.redis_url else self.local.redis_url

    @property
    def resolved_storage_url(self) -> str:
        """The object store that is used."""
        return self.storage_url or self.local.storage_url


class _SecretFiles(PydanticBaseSettingsSource):
    """Reads `FLEEK_SECRET_KEY_FILE` and its like: the secret is the file's content."""

    def get_field_value(self, field: object, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """One secret, stripped of the newline that editors add."""
        path = os.environ.get(f"{PREFIX}{field_name.upper()}_FILE")
        if path is None:
            return None, field_name, False
        try:
            return Path(path).read_text().strip(), field_name, False
        except OSError as error:
            message = f"{PREFIX}{field_name.upper()}_FILE: cannot read {path}: {error.strerror}"
            raise ConfigurationError(message) from error

    def __call__(self) -> dict[str, Any]:
        """All secrets that were given as files."""
        values = {name: self.get_field_value(None, name)[0] for name in _SECRETS}
        return {name: value for name, value in values.items() if value is not None}


def load_settings(**flags: Any) -> Settings:  # noqa: ANN401  any setting can be a flag
    """Settings from every source; a flag that is None counts as not given.

    Raises ConfigurationError, which names the setting and what is wrong with it, never its value.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        raise ConfigurationError("; ".join(_problem(item["loc"], item["msg"]) for item in problems)) from None
    except SettingsError as error:
        raise ConfigurationError(f"{error}; write it as JSON") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{CONFIG_FILE}: {error}") from None


def _problem(location: tuple[int | str, ...], message: str) -> str:
    """What is wrong, after the name of its setting; a rule about several names them itself."""
    name = "__".join(str(part) for part in location).upper()
    return f"{PREFIX}{name}: {message}" if name else message.removeprefix("Value error, ")
