"""Secrets are taken out of whatever a process tells."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from pydantic import BaseModel, SecretStr

from fleek.observability.redaction import MAX_DEPTH, REDACTED, Redactor, known_secrets

SECRET = "tr0ub4dor&3/horse"
UNKNOWN = "Zx81-Qq42-Mm17-Kk03"
"""A secret that the redactor was not told of: only its surroundings give it away."""


@pytest.fixture
def redactor() -> Redactor:
    return Redactor([SECRET, "short"])


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        f"key {SECRET}, refused",
        f"https://host/?key={quote(SECRET, safe='')}",
        f"x{SECRET}y",
        f"{SECRET}{SECRET}",
    ],
)
def test_a_known_secret_is_hidden_wherever_it_stands(redactor: Redactor, written: str) -> None:
    shown = redactor.text(written)

    assert SECRET not in shown
    assert quote(SECRET, safe="") not in shown
    assert REDACTED in shown


def test_a_known_secret_is_hidden_as_json_and_python_write_it() -> None:
    secret = 'with "quotes" and \n a break'
    redactor = Redactor([secret])

    assert redactor.text(f"{[secret]}") == f"['{REDACTED}']"
    assert redactor.text('{"a": "with \\"quotes\\" and \\n a break"}') == f'{{"a": "{REDACTED}"}}'


def test_a_short_value_is_no_secret_since_it_is_part_of_common_words(redactor: Redactor) -> None:
    assert redactor.text("a shorter way") == "a shorter way"


def test_of_two_secrets_of_which_one_begins_the_other_nothing_remains() -> None:
    redactor = Redactor(["abcdefgh", "abcdefghijkl"])

    assert redactor.text("abcdefghijkl abcdefgh") == f"{REDACTED} {REDACTED}"


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (f"Authorization: Bearer {UNKNOWN}", "Authorization: "),
        (f"authorization: {UNKNOWN}", "authorization: "),
        (f"{{'Authorization': 'Token {UNKNOWN}'}}", "'Authorization': '"),
        (f"(b'authorization', b'Basic {UNKNOWN}=')", "authorization"),
        (f"sent Bearer {UNKNOWN}.", "sent Bearer "),
        (f"postgresql+asyncpg://fleek:{UNKNOWN}@db:5432/fleek", "@db:5432/fleek"),
        (f"redis://:{UNKNOWN}@cache:6379/0 is away", "@cache:6379/0 is away"),
        (f"r8_{UNKNOWN.replace('-', '')}", ""),
        (f"the key sk-proj-{UNKNOWN} is wrong", " is wrong"),
        (f"hf_{UNKNOWN.replace('-', '')}", ""),
        (f"AKIA{UNKNOWN.replace('-', '').upper()}", ""),
        (f"ASIA{UNKNOWN.replace('-', '').upper()} refused", " refused"),
        (f"https://s3/b/k?X-Amz-Date=1&X-Amz-Signature={UNKNOWN}&a=b", "&a=b"),
        (f"https://s3/b/k?x-amz-security-token={UNKNOWN}", "https://s3/b/k?"),
        (f"/v1/media/objects/k?expires=1&signature={UNKNOWN}", "expires=1&"),
        (f"/files?sig={UNKNOWN}", "/files?"),
        (f"password={UNKNOWN} host=db", " host=db"),
        (f"password='{UNKNOWN}'", "password="),
        (f'{{"api_key": "{UNKNOWN}", "a": 1}}', '"a": 1'),
        (f"secret_key='{UNKNOWN}'", "secret_key="),
        (f"FLEEK_SECRET_KEY={UNKNOWN}", "FLEEK_"),
        (f"-----BEGIN EC PRIVATE KEY-----\n{UNKNOWN}\n-----END EC PRIVATE KEY----- x", " x"),
    ],
)
def test_a_secret_is_known_by_its_form(written: str, kept: str) -> None:
    shown = Redactor().text(written)

    for part in (UNKNOWN, UNKNOWN.replace("-", ""), UNKNOWN.replace("-", "").upper()):
        assert part not in shown
    assert kept in shown


@pytest.mark.parametrize(
    "harmless",
    [
        "GET /v1/media/jobs/0192?limit=5 took 3 ms",
        "https://example.com:8443/a/b",
        "the token count was 12",
        "a risky task-based approach",
        "FLEEK_SECRET_KEY: at least 16 characters",
        "secrets of the deep sea, a painting",
        "postgresql+asyncpg://fleek@/fleek?host=/run/fleek",
    ],
)
def test_what_is_no_secret_stays_as_it_is(harmless: str) -> None:
    assert Redactor([SECRET]).text(harmless) == harmless


def test_what_was_redacted_once_is_not_changed_by_a_second_pass(redactor: Redactor) -> None:
    once = redactor.text(f"password={SECRET} Authorization: Bearer {SECRET} postgresql://u:{UNKNOWN}@h/d")

    assert redactor.text(once) == once


class Colour(Enum):
    RED = f"red {UNKNOWN}"


def test_values_lose_their_secrets_at_every_depth_and_keep_their_shape(redactor: Redactor) -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    found = redactor.value(
        {
            "list": [1, 2.5, None, True, SECRET, (SECRET, at)],
            "deep": {"er": [{"x": f"Bearer {UNKNOWN}"}]},
            f"name {SECRET}": 1,
            "id": UUID(int=1),
        }
    )

    assert found == {
        "list": [1, 2.5, None, True, REDACTED, (REDACTED, at)],
        "deep": {"er": [{"x": f"Bearer {REDACTED}"}]},
        f"name {REDACTED}": 1,
        "id": UUID(int=1),
    }


@pytest.mark.parametrize(
    "name",
    ["password", "api_key", "apiKey", "REPLICATE_API_TOKEN", "db.password", "Authorization", "client-secret"],
)
def test_a_field_whose_name_says_so_is_a_secret(redactor: Redactor, name: str) -> None:
    assert redactor.value({name: "abc"}) == {name: REDACTED}
    assert redactor.value([(name, "abc")]) == [(name, REDACTED)]


@pytest.mark.parametrize(
    "fields", [{"tokens": 12}, {"token": None}, {"secret_key_file": "/run/key"}, {"key": "media/1.png"}]
)
def test_a_field_that_only_sounds_like_a_secret_is_kept(redactor: Redactor, fields: dict[str, Any]) -> None:
    assert redactor.value(fields) == fields


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"\x89PNG" * 3, "[12 bytes]"),
        (SecretStr(UNKNOWN), REDACTED),
        (ValueError(f"no {SECRET}"), f"ValueError: no {REDACTED}"),
        (Unspeakable(), "<Unspeakable>"),
        ({SECRET}, [REDACTED]),
    ],
)
def test_other_values_become_texts_without_secrets(redactor: Redactor, value: object, shown: object) -> None:
    assert redactor.value(value) == shown


def test_an_endless_value_is_cut() -> None:
    value: list[Any] = []
    value.append(value)

    found = Redactor().value(value)

    for _ in range(MAX_DEPTH):
        assert isinstance(found, list)
        (found,) = found
    assert found == "[left out: too deep]"


def test_a_redactor_shows_nothing_of_what_it_hides(redactor: Redactor) -> None:
    assert SECRET not in repr(redactor)


class Config(BaseModel):
    secret_key: SecretStr | None = None
    database_url: SecretStr | None = None
    storage_endpoint: str = "https://s3.example.com"
    providers: dict[str, dict[str, Any]] = {}


def test_secrets_of_settings_are_keys_passwords_in_urls_and_tokens_of_tables() -> None:
    config = Config(
        secret_key=SecretStr("signing-key-1"),
        database_url=SecretStr("postgresql://fleek:pass%2Fword1@db/fleek"),
        storage_endpoint="https://user:endpoint-pass@s3.example.com",
        providers={
            "replicate": {"token": "replicate-key", "headers": [{"api_key": "nested-key"}], "ref": "x" * 9}
        },
    )

    found = known_secrets(config, {})

    assert found == {
        "signing-key-1", "pass%2Fword1", "pass/word1", "endpoint-pass", "replicate-key", "nested-key",
    }  # fmt: skip


def test_secrets_in_files_that_a_table_names_are_read(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-in-a-file\n")
    config = Config(
        providers={
            "one": {"token_file": str(tmp_path / "token"), "other_file": str(tmp_path / "token")},
            "two": {"token_file": str(tmp_path / "missing")},
        }
    )

    assert known_secrets(config, {}) == {"a-token-in-a-file"}


def test_secrets_of_the_environment_are_those_whose_variable_says_so() -> None:
    environment = {
        "REPLICATE_API_TOKEN": "replicate-token",
        "AWS_SECRET_ACCESS_KEY": "aws-secret-key",
        "AWS_SESSION_TOKEN": "aws-session-token",
        "SENTRY_DSN": "https://0123456789abcdef@sentry.example.com/42",
        "MY_PASSWORD": "my-password",
        "SOME_URL": "amqp://me:amqp-password@broker",
        "AWS_REGION": "eu-central-1",
        "HOME": "/home/somebody",
    }

    assert known_secrets(Config(), environment) == {
        "replicate-token", "aws-secret-key", "aws-session-token", "0123456789abcdef", "my-password",
        "amqp-password",
    }  # fmt: skip


def test_a_password_that_is_only_the_name_of_user_or_database_is_none() -> None:
    config = Config(database_url=SecretStr("postgresql://postgres:postgres@db:5432/postgres"))

    assert known_secrets(config, {}) == set()


@pytest.mark.parametrize(
    "text",
    ["://" + "a" * 60_000, "password=" * 8_000, "x" * 100_000, "authorization:" * 5_000, "://a:" * 20_000],
)
def test_no_text_takes_long(text: str) -> None:
    began = time.perf_counter()
    Redactor([SECRET]).text(text)

    assert time.perf_counter() - began < 2
