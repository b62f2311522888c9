"""Settings: which source wins, how values may be written, and what a wrong one is told."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from fleek.configuration.toml import FILE as CONFIG_FILE
from fleek.core.errors import ConfigurationError
from fleek.settings import Settings, load_settings

SECRET = "hunter2-and-some-more"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to start from, and no settings in the environment."""
    for name in [name for name in os.environ if name.startswith("FLEEK_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_needs_to_be_configured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(folder))
    settings = load_settings()

    assert settings.home == folder / "fleek"
    assert settings.resolved_database_url == settings.local.database_url
    assert settings.resolved_redis_url == settings.local.redis_url
    assert settings.resolved_storage_url == settings.local.storage_url
    assert (settings.queues, settings.slots, settings.host) == (("default",), 64, "127.0.0.1")


def test_each_source_wins_over_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = folder / "url"
    secret.write_text("redis://file\n")
    (folder / CONFIG_FILE).write_text("slots = 1\nport = 1\nlease = 41\nclaim_interval = 1.5\n")
    (folder / ".env").write_text("FLEEK_SLOTS=2\nFLEEK_PORT=2\nFLEEK_LEASE=42\nFLEEK_REDIS_URL=redis://env\n")
    (folder / ".env.local").write_text("FLEEK_SLOTS=3\nFLEEK_PORT=3\n")
    monkeypatch.setenv("FLEEK_REDIS_URL_FILE", str(secret))
    monkeypatch.setenv("FLEEK_SLOTS", "4")
    monkeypatch.setenv("FLEEK_PORT", "4")

    settings = load_settings(slots=5, port=None)

    assert (settings.slots, settings.port, settings.lease) == (5, 4, 42)
    assert settings.resolved_redis_url == "redis://file"
    assert settings.claim_interval == 1.5


def test_what_is_configured_is_what_is_used() -> None:
    settings = load_settings(
        database_url="postgresql+asyncpg://db/fleek", redis_url="redis://r", storage_url="s3://bucket"
    )

    assert settings.resolved_database_url == "postgresql+asyncpg://db/fleek"
    assert settings.resolved_redis_url == "redis://r"
    assert settings.resolved_storage_url == "s3://bucket"


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgresql", "postgres"])
@pytest.mark.parametrize("parameter", ["sslmode", "ssl"])
def test_a_database_url_needs_no_driver_and_asks_for_tls_by_either_name(scheme: str, parameter: str) -> None:
    settings = load_settings(database_url=f"{scheme}://ada:pass%20word@db:5432/fleek?{parameter}=require")

    assert (
        settings.resolved_database_url == "postgresql+asyncpg://ada:pass%20word@db:5432/fleek?sslmode=require"
    )


@pytest.mark.parametrize("url", ["mysql://db/fleek", "db/fleek", "", "postgresql+psycopg://db/fleek"])
def test_another_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"FLEEK_DATABASE_URL: .*must be a PostgreSQL URL"):
        load_settings(database_url=url)


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEEK_SECRET_KEY", SECRET)

    assert SECRET not in repr(load_settings())


@pytest.mark.parametrize(
    ("value", "queues"),
    [("default", ("default",)), ("gpu,default", ("gpu", "default")), (" a , b ,", ("a", "b"))],
)
def test_lists_are_written_with_commas(
    value: str, queues: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEEK_QUEUES", value)
    monkeypatch.setenv("FLEEK_ALLOWED_HOSTS", "media.example.com, other.example.com")
    settings = load_settings()

    assert settings.queues == queues
    assert load_settings(queues=value).queues == queues
    assert load_settings(queues=queues).queues == queues
    assert settings.allowed_hosts == ("media.example.com", "other.example.com")


def test_a_list_in_the_file_is_a_list(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text('queues = ["gpu", "default"]\n')

    assert load_settings().queues == ("gpu", "default")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("90s", timedelta(seconds=90)),
        ("3m", timedelta(minutes=3)),
        ("1h", timedelta(hours=1)),
        ("PT2M", timedelta(minutes=2)),
    ],
)
def test_a_model_is_declared_in_the_file(folder: Path, written: str, meant: timedelta) -> None:
    (folder / CONFIG_FILE).write_text(
        f'[models."flux-schnell"]\nprovider = "replicate"\nattempt_timeout = "{written}"\n'
        'price_per_output = "0.003"\n[providers.demo]\ndefault_delay = 0\n'
    )
    settings = load_settings()

    assert settings.models["flux-schnell"].attempt_timeout == meant
    assert str(settings.models["flux-schnell"].price_per_output) == "0.003"
    assert settings.providers == {"demo": {"default_delay": 0}}


def test_a_relative_home_is_taken_from_here_and_a_tilde_is_the_users(folder: Path) -> None:
    assert load_settings(home="data").home == folder / "data"
    assert load_settings(home="~/data").home == Path.home() / "data"


def test_settings_do_not_change() -> None:
    settings = load_settings()

    with pytest.raises(ValidationError):
        settings.slots = 3  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLOTS", "0"),
        ("SLOTS", "many"),
        ("PORT", "65536"),
        ("LEASE", "nan"),
        ("LEASE", "inf"),
        ("LEASE", "0"),
        ("QUEUES", ","),
        ("QUEUES", "default,Not A Queue"),
        ("LOG_LEVEL", "loud"),
        ("CONTENT_URL_TTL", "1"),
        ("MEDIA_TTL", "59s"),
        ("JOB_RETENTION", "23h"),
        ("ORPHAN_AGE", "59m"),
        ("ORPHAN_INTERVAL", "59s"),
        ("MODELS", "no json"),
        ("MODELS__FLUX__QUEUE", "Not A Queue"),
    ],
)
def test_a_wrong_value_names_its_setting(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"FLEEK_{name}", value)

    with pytest.raises(ConfigurationError) as caught:
        load_settings()

    assert name.partition("__")[0].lower() in caught.value.message.lower()


def test_a_wrong_secret_is_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEEK_SLOTS", SECRET)

    with pytest.raises(ConfigurationError) as caught:
        load_settings()

    assert SECRET not in caught.value.message


@pytest.mark.parametrize("lease", ["2", "19.9"])
def test_a_lease_is_renewed_twice_before_it_ends(lease: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEEK_LEASE", lease)

    with pytest.raises(ConfigurationError, match=r"^FLEEK_RENEW_INTERVAL must be at most half"):
        load_settings()

    monkeypatch.setenv("FLEEK_RENEW_INTERVAL", "1")
    assert load_settings().lease == float(lease)


@pytest.mark.parametrize("confirm_after", ["10", "11"])
def test_a_live_owner_renews_between_the_two_looks_of_a_rescuer(
    confirm_after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEEK_RESCUE_CONFIRM_AFTER", confirm_after)

    with pytest.raises(ConfigurationError, match=r"^FLEEK_RESCUE_CONFIRM_AFTER must be more"):
        load_settings()

    monkeypatch.setenv("FLEEK_RENEW_INTERVAL", "5")
    assert load_settings().rescue_confirm_after == float(confirm_after)


def test_the_tables_of_providers_are_not_shown_since_they_may_hold_keys() -> None:
    settings = load_settings(providers={"replicate": {"api_token": SECRET}})

    assert settings.providers["replicate"]["api_token"] == SECRET
    assert SECRET not in repr(settings)


def test_a_secret_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEEK_SECRET_KEY_FILE", "/no/such/file")

    with pytest.raises(ConfigurationError, match="FLEEK_SECRET_KEY_FILE: cannot read /no/such/file"):
        load_settings()


def test_a_file_that_is_no_toml_is_named(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text("lease = [")

    with pytest.raises(ConfigurationError, match=f"^{CONFIG_FILE}, line 1: lease: "):
        load_settings()


def test_every_setting_says_what_it_is() -> None:
    silent = [name for name, field in Settings.model_fields.items() if not field.description]

    assert silent == []


@pytest.mark.parametrize("value", ["59m", "0s", "soon"])
def test_log_entries_are_kept_for_an_hour_at_least(value: str) -> None:
    with pytest.raises(ConfigurationError, match="FLEEK_LOG_RETENTION"):
        load_settings(log_retention=value)


def test_log_entries_are_kept_for_two_weeks_and_prompts_and_requests_not_logged_by_default() -> None:
    settings = load_settings()

    assert settings.log_retention == timedelta(days=14)
    assert (settings.log_prompts, settings.log_requests) == (False, False)
