"""What a wrong setting is told: its name, where it stands, what is wrong, an example, and never its value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from fleek.configuration.complaints import example_of
from fleek.configuration.names import variable_of
from fleek.core.errors import ConfigurationError
from fleek.settings import ModelSettings, Settings, load_settings

BAD = "hunter2 \t and more"
"""No setting is like this: it is no number, URL, name, word, time or JSON."""
FREE_TEXT = {"home", "host", "secret_key", "allowed_hosts", "storage_region", "worker_host"}
"""Settings that take any text: what is wrong with one is found where it is used."""
FIELDS = Settings.model_fields.items()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to start from, and no settings in the environment."""
    for name in [name for name in os.environ if name.startswith(("FLEEK_", "SENTRY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def complaint(**flags: object) -> str:
    """What a start is told."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(**flags)
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "field"), [pytest.param(*item, id=item[0]) for item in FIELDS if item[0] not in FREE_TEXT]
)
def test_every_setting_is_named_with_an_example_and_without_its_value(
    name: str, field: FieldInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = variable_of(name, field)
    monkeypatch.setenv(variable, BAD)

    told = complaint()

    assert told.startswith(f"{variable}: ")
    assert told.endswith(f"; such as {example_of(field)}")
    assert "hunter2" not in told


@pytest.mark.parametrize("field", [pytest.param(field, id=name) for name, field in FIELDS])
def test_every_setting_has_an_example(field: FieldInfo) -> None:
    assert example_of(field)


@pytest.mark.parametrize(
    ("name", "field"),
    [pytest.param(*item, id=item[0]) for item in FIELDS if item[0] not in {"secret_key", "home"}],
)
def test_every_example_is_accepted(name: str, field: FieldInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable_of(name, field), str(example_of(field)))

    assert getattr(load_settings(), name) is not None


@pytest.mark.parametrize(
    "field", [pytest.param(field, id=name) for name, field in ModelSettings.model_fields.items()]
)
def test_every_key_of_a_model_has_an_example(field: FieldInfo) -> None:
    assert example_of(field)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("FLEEK_SLOTS", "0", "FLEEK_SLOTS: must be greater than or equal to 1; such as 64"),
        ("FLEEK_SLOTS", "many", "FLEEK_SLOTS: must be a whole number; such as 64"),
        ("FLEEK_LEASE", "long", "FLEEK_LEASE: must be a number; such as 30"),
        (
            "FLEEK_LOG_LEVEL",
            "loud",
            "FLEEK_LOG_LEVEL: must be 'debug', 'info', 'warning' or 'error'; such as info",
        ),
        (
            "FLEEK_STORAGE_PATH_STYLE",
            "maybe",
            "FLEEK_STORAGE_PATH_STYLE: must be true or false; such as true",
        ),
        (
            "FLEEK_MODELS",
            "no json",
            'FLEEK_MODELS: is no JSON; such as {"sketch": {"provider": "demo"}}',
        ),
        (
            "FLEEK_MODELS__FLUX__MAX_CONCURRENCY",
            "0",
            (
                "FLEEK_MODELS__FLUX__PROVIDER: is missing; such as replicate; "
                "FLEEK_MODELS__FLUX__MAX_CONCURRENCY: must be greater than or equal to 1; such as 20"
            ),
        ),
        (
            "SENTRY_TRACES_SAMPLE_RATE",
            "2",
            "SENTRY_TRACES_SAMPLE_RATE: must be less than or equal to 1; such as 0",
        ),
        (
            "FLEEK_QUEUES",
            "Fast Lane,default",
            (
                "FLEEK_QUEUES: must be 1 to 63 small letters, digits, - and _, and begin with a letter or "
                "digit; such as default"
            ),
        ),
        ("FLEEK_QUEUES", ",", "FLEEK_QUEUES: must not be empty; such as default"),
        ("FLEEK_MODELS", "[1]", "FLEEK_MODELS: must be a table, in JSON; such as {"),
        ("FLEEK_MODELS", '{"x": 1}', "FLEEK_MODELS__X: must be a table; such as {"),
        (
            "SENTRY_ENVIRONMENT",
            "a/b",
            "SENTRY_ENVIRONMENT: must have no white space and no /; such as production",
        ),
        (
            "FLEEK_SENTRY_DSN",
            "x",
            "FLEEK_SENTRY_DSN: must be a Sentry DSN, which begins with https://; such as ",
        ),
    ],
)
def test_the_words_are_about_the_rule(
    variable: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)

    found = complaint()

    assert found.startswith(told)
    assert found.count("; such as ") == told.count("; such as "), "each mistake is told once"


@pytest.mark.parametrize(
    ("setting", "url", "rule"),
    [
        ("database_url", "mysql://ada:hunter2@db/fleek", "must be a PostgreSQL URL"),
        ("database_url", "postgresql://", "must be a PostgreSQL URL with a host"),
        ("database_url", "postgresql://ada:hunter2@db:port/fleek", "whose port is a number from 0 to 65535"),
        ("database_url", "postgresql://ada:hunter2@db:70000/fleek", "whose port is a number from 0 to 65535"),
        (
            "database_url",
            "postgresql://ada:hun#ter2@db/fleek",
            "without #; inside of a password it is written %23",
        ),
        ("database_url", "postgresql://[::1/fleek", "whose host is a name or an address"),
        ("database_url", "postgresql://ada:hunter2@db/fleek\n", "without white space"),
        ("database_url", "postgresql://db/fleek?hunter2=1", "no other parameters than host, port, "),
        ("database_url", "postgresql://db/fleek?sslmode=hunter2", "an sslmode of disable, allow, "),
        ("redis_url", "http://hunter2@cache", "begins with redis://, rediss:// or unix://"),
        ("redis_url", "redis:///0", "with a host"),
        ("redis_url", "redis://cache/zero", "must name its database by number"),
        ("redis_url", "redis://cache:x", "whose port is a number"),
        ("redis_url", "unix://", "must name a socket"),
        ("storage_url", "/var/media", "must be the URL of a folder or a bucket"),
        ("storage_url", "file://media", "three slashes and an absolute path"),
        ("storage_url", "s3:///prefix", "must name a bucket"),
        ("storage_endpoint", "localhost:4566", "begins with http:// or https://"),
        ("storage_endpoint", "http://", "with a host"),
        ("storage_public_endpoint", "https://s3.example.com?x=hunter2", "without a query"),
        ("public_url", "https://ada:hunter2@media.example.com", "without user and password"),
        ("public_url", "https://media.example.com:99999", "whose port is a number"),
        ("sentry_dsn", "ftp://hunter2@sentry.example.com/1", "begins with https://"),
        ("sentry_dsn", "https://sentry.example.com/1", "with a public key"),
        ("sentry_dsn", "https://hunter2@sentry.example.com/project", "ends in a project's number"),
        ("sentry_dsn", "https://hunter2@sentry.example.com:x/1", "whose port is a number"),
    ],
)
def test_a_url_is_read_at_the_start_and_told_in_our_words(setting: str, url: str, rule: str) -> None:
    told = complaint(**{setting: url})

    assert rule in told
    assert f"; such as {example_of(Settings.model_fields[setting])}" in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        ("database_url", "postgresql://fleek@/fleek?host=/run/postgres"),
        ("database_url", "postgresql+asyncpg://ada:p%23ss@[::1]:5432/fleek"),
        ("database_url", "postgresql://ada@db/fleek?sslmode=verify-full&sslrootcert=/etc/ssl/rds.pem"),
        ("redis_url", "rediss://:secret@cache:6380/1"),
        ("redis_url", "unix:///run/valkey.sock"),
        ("storage_url", "file:///var/lib/fleek"),
        ("storage_url", "memory://"),
        ("public_url", "https://example.com/media"),
        ("sentry_dsn", "http://key:secret@127.0.0.1:9000/sentry/12"),
    ],
)
def test_a_url_of_any_usual_form_is_taken(setting: str, url: str) -> None:
    assert getattr(load_settings(**{setting: url}), setting)


def test_a_value_of_the_config_file_is_told_with_its_line(folder: Path) -> None:
    (folder / "fleek.toml").write_text('# ours\nport = 8000\n\nslots = "hunter2"\n')

    assert complaint() == "FLEEK_SLOTS (fleek.toml, line 4): must be a whole number; such as 64"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("slotz = 4\n", "fleek.toml, line 1: slotz: no setting has this name; did you mean slots?"),
        (
            'host = "::1"\n\n[model."x"]\nprovider = "demo"\n',
            "fleek.toml, line 3: model: no setting has this name; did you mean models?",
        ),
        ("zzzzzz = 1\n", "fleek.toml, line 1: zzzzzz: no setting has this name"),
        ("lease = hunter2\n", "fleek.toml, line 1: lease: is no TOML: Invalid value; such as port = 8000"),
        ("port = 1\nport = 2\n", "fleek.toml, line 2: port: is no TOML: Cannot overwrite a value"),
        (
            '[models."x"]\nprovder = "demo"\n',
            (
                'models."x".provider (fleek.toml, line 1): is missing; such as replicate; '
                'models."x".provder (fleek.toml, line 2): is no key of it; did you mean provider?'
            ),
        ),
        (
            '[models."a.b"]\nprovider = "demo"\nmax_concurrency = 0\n',
            'models."a.b".max_concurrency (fleek.toml, line 3): must be greater than or equal to 1',
        ),
        (
            '[models]\nx = {provider = "demo", attempt_timeout = "hunter2"}\n',
            'models."x".attempt_timeout (fleek.toml, line 2): ',
        ),
    ],
)
def test_the_config_file_is_told_by_file_line_and_key(folder: Path, text: str, told: str) -> None:
    (folder / "fleek.toml").write_text(text)

    found = complaint()

    assert found.startswith(told)
    assert "hunter2" not in found


@pytest.mark.parametrize("name", [".env", ".env.local"])
def test_a_value_of_a_dotenv_file_is_told_with_its_line(folder: Path, name: str) -> None:
    (folder / name).write_text("# ours\n\nFLEEK_PORT=8000\n\n\nFLEEK_SLOTS=hunter2\n")

    assert complaint() == f"FLEEK_SLOTS ({name}, line 6): must be a whole number; such as 64"


def test_what_the_environment_overrides_is_not_blamed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text("FLEEK_SLOTS=2\n")
    monkeypatch.setenv("FLEEK_SLOTS", "many")

    assert complaint().startswith("FLEEK_SLOTS: ")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            b"FLEEK_PORT=1\nFLEEK_SLOTS 2 hunter2\n",
            ".env, line 2: must be NAME=value, such as FLEEK_PORT=8000",
        ),
        (b"\xff\xfe", ".env: is no UTF-8 text; save it as such"),
        (
            b"\xef\xbb\xbfFLEEK_PORT=1\n",
            ".env, line 1: begins with a byte order mark; save it as UTF-8 without one",
        ),
    ],
)
def test_a_dotenv_file_that_cannot_be_understood_stops_the_start(
    folder: Path, content: bytes, told: str
) -> None:
    (folder / ".env").write_bytes(content)

    assert complaint() == told


@pytest.mark.parametrize("name", [".env", ".env.local", "fleek.toml"])
def test_a_folder_in_a_files_place_stops_the_start(folder: Path, name: str) -> None:
    (folder / name).mkdir()

    assert complaint() == f"{name}: cannot be read: Is a directory; mend or remove it"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty; it must hold the secret and no more"),
        (b"\xff\xfe", "is no UTF-8 text"),
        (b"x" * 100_000, "is longer than 65536 bytes"),
        (b"mysql://ada:hunter2@db/x", "must be a PostgreSQL URL"),
    ],
)
def test_a_secret_file_that_holds_something_else_is_told_by_its_variable(
    folder: Path, content: bytes, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "url").write_bytes(content)
    monkeypatch.setenv("FLEEK_DATABASE_URL_FILE", "./url")

    found = complaint()

    assert "FLEEK_DATABASE_URL_FILE" in found
    assert told in found
    assert "hunter2" not in found


def test_a_secret_in_place_of_its_files_path_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTRY_DSN_FILE", "hunter2")

    assert complaint().startswith(
        "SENTRY_DSN_FILE: cannot read the file that it names, such as /run/secrets/key: "
    )


def test_a_secret_that_is_given_twice_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "key").write_text("of a file, with enough characters\n")
    monkeypatch.setenv("FLEEK_SECRET_KEY", "of a variable, long enough")
    monkeypatch.setenv("FLEEK_SECRET_KEY_FILE", str(folder / "key"))

    assert complaint() == "FLEEK_SECRET_KEY and FLEEK_SECRET_KEY_FILE are both given; keep one of them"
