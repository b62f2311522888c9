"""Every setting of Fleek, with a default that works untouched.

Sources, the strongest first: flags > environment (`FLEEK_`, nested with `__`, `*_FILE` for
secrets) > `.env.local` > `.env` > `fleek.toml` > the defaults here. Only `bootstrap` reads this.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
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
)

from fleek.configuration import urls
from fleek.configuration.complaints import Complaints
from fleek.configuration.dotenv import FILES, DotenvFile, export_shared_names, read_dotenv_files
from fleek.configuration.names import PREFIX, list_unknown_variables
from fleek.configuration.sources import ConfigFile, SecretFiles
from fleek.configuration.toml import FILE as CONFIG_FILE
from fleek.configuration.types import (
    SENTRY_ENVIRONMENT,
    SENTRY_RELEASE,
    Duration,
    HttpUrl,
    QueueName,
    Seconds,
    at_least,
    secret_url,
    standard_name,
)
from fleek.core.errors import ConfigurationError
from fleek.core.home import Home, default_home

_WRONG_CONFIGURATION = 2
"""The exit code of a start that a setting stops; the command line has the same."""


class ModelSettings(BaseModel):
    """One `[models."name"]` table of `fleek.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    provider: Annotated[str, Field(examples=["replicate"])]
    """The name of an installed provider."""
    ref: Annotated[str, Field(examples=["black-forest-labs/flux-schnell"])] = ""
    """What the provider calls the model; empty means the model's own name."""
    queue: QueueName = "default"
    """The queue whose workers run it."""
    max_concurrency: Annotated[Annotated[int, Field(ge=1)] | None, Field(examples=[20])] = None
    """Jobs of the model that run at once, over all workers; unset: as many as there are slots."""
    max_paid_submissions: Annotated[int, Field(ge=1, le=20)] = 1
    """Orders that may be paid for one output, where it never became known what came of those before."""
    attempt_timeout: Annotated[Duration, Field(examples=["3m"])] = timedelta(minutes=10)
    """How long one attempt may take, such as `90s`, `3m` or `1h`."""
    price_per_output: Annotated[Decimal | None, Field(examples=["0.003"])] = None
    """US dollars, shown by `GET /v1/models`."""
    description: Annotated[str, Field(examples=["quick drafts"])] = ""
    """One line for people, shown by `GET /v1/models`."""


def _home_from_environment() -> Path:
    return default_home(os.environ, user_home=Path.home(), is_root=os.geteuid() == 0)


class Settings(BaseSettings):
    """Frozen; built once a process by `load_settings`."""

    model_config = SettingsConfigDict(
        use_attribute_docstrings=True,
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_file=FILES,
        env_file_encoding="utf-8",
        # Compose passes an empty value for a variable that nobody set.
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )

    home: Annotated[Path, Field(examples=["/var/lib/fleek"])] = Field(default_factory=_home_from_environment)
    """Where a laptop's Fleek keeps its data."""
    secret_key: Annotated[SecretStr | None, Field(examples=["`openssl rand -hex 32` gives"])] = None
    """Signs cursors and local content URLs; generated once into the home when unset."""

    host: str = "127.0.0.1"
    """Address that the api listens on."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """Port that the api listens on."""
    public_url: Annotated[HttpUrl | None, Field(examples=["https://media.example.com"])] = None
    """Base of the links in answers, such as `https://media.example.com`; unset: the request's own host."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, Field(examples=[("media.example.com",)])] = ()
    """Host headers that are answered, beside loopback's names; `*` switches the check off."""
    insecure_no_auth: bool = False
    """Whether the api may listen where other machines reach it, though it asks nobody for a key."""

    database_url: Annotated[
        SecretStr | None,
        secret_url(urls.check_database_url),
        Field(examples=["postgresql+asyncpg://user:password@host/name"]),
    ] = None
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
    wait_for_schema: bool = False
    """Whether a start waits for migrations that somebody else runs; else a schema that is too old ends it."""

    redis_url: Annotated[
        SecretStr | None,
        secret_url(urls.check_redis_url),
        Field(examples=["redis://:password@host:6379/0"]),
    ] = None
    """`redis://...`; unset: the embedded Valkey of the home."""

    storage_url: Annotated[
        Annotated[str, AfterValidator(urls.check_storage_url)] | None, Field(examples=["s3://bucket/prefix"])
    ] = None
    """`file:///path`, `s3://bucket/prefix` or `memory://`; unset: `media` in the home."""
    storage_endpoint: Annotated[HttpUrl | None, Field(examples=["http://localhost:4566"])] = None
    """S3 endpoint that Fleek itself talks to; unset: the cloud's own."""
    storage_public_endpoint: Annotated[HttpUrl | None, Field(examples=["https://s3.example.com"])] = None
    """S3 endpoint that clients reach, where it differs: signed URLs carry it."""
    storage_region: str = "us-east-1"
    """S3 region."""
    storage_path_style: bool = True
    """`https://endpoint/bucket/key` rather than `https://bucket.endpoint/key`."""

    content_url_ttl: Annotated[int, Field(ge=30, le=604_800)] = 600
    """Seconds that a signed content URL lives when it is made."""
    content_url_reuse: Literal["off", "process", "shared"] = "shared"
    """Whose URLs are handed out again, until two thirds of their life are over: those of this api process, or
    of all, through Redis. `off`: a new URL each time."""
    max_output_bytes: Annotated[int, Field(ge=1)] = 512 * 1024 * 1024
    """Bytes that one output may have."""
    variant_threads: Annotated[int, Field(ge=1, le=64)] = 2
    """Threads of a process that decode and scale pictures."""
    queues: Annotated[tuple[QueueName, ...], NoDecode, Field(min_length=1)] = ("default",)
    """Queues that a worker serves."""
    slots: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Jobs that one worker process runs at once."""
    worker_host: str = "127.0.0.1"
    """Address of a worker's own port, which answers probes and monitors and nothing else."""
    worker_port: Annotated[Annotated[int, Field(ge=0, le=65_535)] | None, Field(examples=[8001])] = None
    """Port of a worker's own `/livez`, `/readyz` and `/metrics`; unset: none."""
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

    media_ttl: Annotated[Annotated[Duration, at_least("1m")] | None, Field(examples=["30d"])] = None
    """How long a result is kept from when it is stored, such as `12h` or `30d`; unset: for ever. Results that
    are stored already keep what they got."""
    job_retention: Annotated[Annotated[Duration, at_least("1d")] | None, Field(examples=["90d"])] = None
    """How long a job is kept from its end, with its prompt, history and results; unset: for ever."""
    prune_interval: Seconds = 60
    """Seconds between two looks for what is to be deleted."""
    orphan_age: Annotated[Duration, at_least("1h"), Field(examples=["1d"])] = timedelta(days=1)
    """How old an object that no row names must be before it is deleted."""
    orphan_interval: Annotated[Duration, at_least("1m"), Field(examples=["6h"])] = timedelta(hours=6)
    """How often the whole object store is listed to find such objects."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe records that are written."""
    log_format: Literal["auto", "json", "pretty"] = "auto"
    """`auto`: pretty on a terminal, else JSON."""
    log_requests: bool = False
    """Whether the api records every request: changes at info, reads at debug; failures of its own always."""
    log_prompts: bool = False
    """Whether records of attempts hold the beginning of the prompt."""
    log_retention: Annotated[Duration, Field(ge=timedelta(hours=1), examples=["14d"])] = timedelta(days=14)
    """How long records that are kept in the database stay there."""

    metrics: bool = True
    """Whether `/metrics` answers, on the api's port and on a worker's own."""
    sentry_dsn: Annotated[
        SecretStr | None,
        secret_url(urls.check_dsn),
        Field(examples=["https://public-key@o1.ingest.sentry.io/2"]),
    ] = Field(default=None, validation_alias=standard_name("SENTRY_DSN"))
    """Where errors are reported; unset: nowhere."""
    sentry_environment: Annotated[str, Field(min_length=1, max_length=64, pattern=SENTRY_ENVIRONMENT)] = (
        Field(default="production", validation_alias=standard_name("SENTRY_ENVIRONMENT"))
    )
    """What the reported errors are told apart by, such as `staging`."""
    sentry_release: Annotated[
        Annotated[str, Field(min_length=1, max_length=200, pattern=SENTRY_RELEASE)] | None,
        Field(examples=["fleek@1.2.0"]),
    ] = Field(default=None, validation_alias=standard_name("SENTRY_RELEASE"))
    """The release of reported errors; unset: `fleek@` and the version."""
    sentry_traces_sample_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0, validation_alias=standard_name("SENTRY_TRACES_SAMPLE_RATE")
    )
    """The share of requests and attempts whose duration is reported too, from 0 to 1."""

    models: Annotated[dict[str, ModelSettings], Field(examples=['{"sketch": {"provider": "demo"}}'])] = Field(
        default_factory=dict
    )
    """`[models."name"]` tables of `fleek.toml`."""
    providers: Annotated[
        dict[str, dict[str, Any]], Field(examples=['{"replicate": {"token_file": "/run/secrets/replicate"}}'])
    ] = Field(default_factory=dict, repr=False)
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
        """Flags, environment, `*_FILE`, dotenv files and the `*_FILE` in them, `fleek.toml`."""
        dotenv: dict[str, str] = {}
        for file in read_dotenv_files():
            dotenv |= file.values
        return (
            init_settings,
            env_settings,
            SecretFiles(settings_cls, os.environ),
            dotenv_settings,
            SecretFiles(settings_cls, dotenv),
            ConfigFile(settings_cls),
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


def load_settings(**flags: Any) -> Settings:  # noqa: ANN401  any setting can be a flag
    """Settings from every source; a flag that is None counts as not given.

    Raises ConfigurationError, which names the setting and what is wrong with it, never its value.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    files = read_dotenv_files()
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigurationError(_complaints(given, files).describe(error)) from None
    except SettingsError as error:
        raise ConfigurationError(_complaints(given, files).describe_unparsed(error)) from None


def _complaints(flags: Mapping[str, Any], files: Sequence[DotenvFile]) -> Complaints:
    return Complaints(Settings, {"models": ModelSettings}, flags, files)


def start_settings() -> Settings:
    """Settings for a program that another one hosts, such as uvicorn or celery, and for nobody else.

    Makes the shared names of the dotenv files known to the process. A wrong setting ends the program: with
    one line and, where the host lets it, exit code 2.
    """
    try:
        export_shared_names(os.environ)
        return load_settings()
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error.message}\n")
        raise SystemExit(_WRONG_CONFIGURATION) from None


def list_misnamed() -> dict[str, str | None]:
    """Variables of the environment and of the dotenv files that set nothing, and what was probably meant."""
    names = dict.fromkeys(os.environ)
    for file in read_dotenv_files():
        names |= dict.fromkeys(file.values)
    return list_unknown_variables(names, Settings)


def list_repeated() -> list[str]:
    """Variables that a dotenv file gives more than once: the last one counts."""
    return [
        f"{name} ({file.name}, line {file.lines[name]})"
        for file in read_dotenv_files()
        for name in file.repeated
    ]


def list_files() -> list[str]:
    """The files of the current folder that settings come from, the weakest first."""
    return [name for name in (CONFIG_FILE, *FILES) if Path(name).exists()]
