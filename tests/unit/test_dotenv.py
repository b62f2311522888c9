"""`.env` and `.env.local`: who hears of them, and what becomes of names that set nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from fleek.cli.checks import judge_configuration
from fleek.configuration.dotenv import export_shared_names
from fleek.reporting import warn_of_misnamed
from fleek.settings import list_files, list_misnamed, list_repeated, load_settings

SHARED = ("AWS_ACCESS_KEY_ID", "REPLICATE_API_TOKEN", "OTHER")
SHOW = f"import os; print(*(os.environ.get(name) for name in {SHARED}))"
CLI = "import sys, fleek.cli.main as cli; sys.argv = ['fleek', '--version']; "


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to start from, and no settings in the environment."""
    for name in [name for name in os.environ if name.startswith(("FLEEK_", "SENTRY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def in_process(folder: Path, code: str, **variables: str) -> str:
    """What a Python process in this folder prints."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FLEEK_", "SENTRY_", "AWS_", "REPLICATE_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=plain | {"FLEEK_HOME": str(folder / "home")} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "entry",
    [
        "import fleek.main",
        "import fleek.tasks.celery",
        f"{CLI}cli._end = print; cli.run()",
    ],
)
def test_shared_names_of_the_files_reach_what_reads_the_environment(folder: Path, entry: str) -> None:
    (folder / ".env").write_text("AWS_ACCESS_KEY_ID=weak\nREPLICATE_API_TOKEN=of-env\nOTHER=private\n")
    (folder / ".env.local").write_text("AWS_ACCESS_KEY_ID=local\n")

    shown = in_process(folder, f"{entry}; {SHOW}")

    assert shown.splitlines()[-1] == "local of-env None"


def test_the_environment_wins_over_the_files_unless_its_value_is_empty(folder: Path) -> None:
    (folder / ".env").write_text("AWS_ACCESS_KEY_ID=of-env\nREPLICATE_API_TOKEN=of-env\n")

    shown = in_process(folder, f"import fleek.main; {SHOW}", AWS_ACCESS_KEY_ID="real", REPLICATE_API_TOKEN="")

    assert shown == "real of-env None"


def test_the_command_line_is_not_kept_from_its_help_by_a_broken_file(folder: Path) -> None:
    (folder / ".env").write_bytes(b"\xff")

    shown = in_process(
        folder, "import sys, fleek.cli.main as cli; sys.argv = ['fleek', '--version']; cli.run()"
    )

    assert shown


def test_reading_settings_exports_nothing(folder: Path) -> None:
    (folder / ".env").write_text("AWS_SESSION_TOKEN=of-env\n")
    load_settings()

    assert "AWS_SESSION_TOKEN" not in os.environ


@pytest.mark.parametrize(
    ("before", "after"),
    [({}, "local"), ({"FAL_KEY": ""}, "local"), ({"FAL_KEY": "real"}, "real")],
)
def test_the_local_file_wins_over_the_other(folder: Path, before: dict[str, str], after: str) -> None:
    (folder / ".env").write_text("FAL_KEY=env\n")
    (folder / ".env.local").write_text("FAL_KEY=local\n")
    environment = dict(before)
    export_shared_names(environment)

    assert environment == {"FAL_KEY": after}


def test_an_empty_value_counts_as_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text("FLEEK_SLOTS=7\nFLEEK_QUEUES=\nSENTRY_DSN=\n")
    monkeypatch.setenv("FLEEK_SLOTS", "")
    monkeypatch.setenv("FLEEK_DATABASE_URL_FILE", "")
    settings = load_settings()

    assert (settings.slots, settings.queues, settings.sentry_dsn) == (7, ("default",), None)


def test_a_secrets_file_may_be_named_in_a_dotenv_file(folder: Path) -> None:
    (folder / "dsn").write_text("https://key@sentry.example.com/1\n")
    (folder / ".env").write_text("SENTRY_DSN_FILE=dsn\n")
    dsn = load_settings().sentry_dsn

    assert dsn is not None
    assert dsn.get_secret_value() == "https://key@sentry.example.com/1"


@pytest.mark.parametrize("source", ["environment", ".env", "fleek.toml", "flag"])
def test_a_standard_name_is_read_from_every_source_and_never_shown(
    folder: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn, flags = "https://hunter2@sentry.example.com/1", {}
    match source:
        case "environment":
            monkeypatch.setenv("SENTRY_DSN", dsn)
        case ".env":
            (folder / ".env").write_text(f"SENTRY_DSN={dsn}\n")
        case "fleek.toml":
            (folder / "fleek.toml").write_text(f'sentry_dsn = "{dsn}"\n')
        case "flag":
            flags = {"sentry_dsn": dsn}
    settings = load_settings(**flags)

    assert settings.sentry_dsn is not None
    assert settings.sentry_dsn.get_secret_value() == dsn
    assert "hunter2" not in repr(settings)


def test_our_own_form_of_a_standard_name_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTRY_ENVIRONMENT", "everybody")
    monkeypatch.setenv("FLEEK_SENTRY_ENVIRONMENT", "ours")

    assert load_settings().sentry_environment == "ours"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FLEEK_SLOTZ", "FLEEK_SLOTS"),
        ("FLEEK_DATABSE_URL", "FLEEK_DATABASE_URL"),
        ("FLEEK_SENTRY_DNS", "FLEEK_SENTRY_DSN"),
        ("FLEEK_SECRET_KEY_FLIE", "FLEEK_SECRET_KEY_FILE"),
        ("FLEEK_WHATEVER", None),
    ],
)
def test_a_variable_that_sets_nothing_is_noticed(
    name: str, meant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "x")

    with structlog.testing.capture_logs() as logs:
        warn_of_misnamed()

    assert list_misnamed() == {name: meant}
    expected = {"event": "unknown_setting", "log_level": "warning", "variable": name, "did_you_mean": meant}
    assert logs == [expected]


@pytest.mark.parametrize(
    "name",
    [
        *("FLEEK_SLOTS", "fleek_slots", "FLEEK_MODELS__X__PROVIDER", "FLEEK_SECRET_KEY_FILE", "FLEEK_URL"),
        *("FLEEK_DEBUG", "FLEEK_FAILPOINTS", "FLEEK_SENTRY_DSN", "FLEEK_SENTRY_DSN_FILE", "SENTRY_ANYTHING"),
    ],
)
def test_a_variable_that_means_something_is_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")

    assert list_misnamed() == {}


def test_the_doctor_tells_which_files_were_read_and_what_is_given_twice(folder: Path) -> None:
    (folder / ".env.local").write_text("FLEEK_PORT=1\nFLEEK_SLOTZ=2\nFLEEK_PORT=3\n")
    (folder / "fleek.toml").write_text("port = 4\n")
    misnamed = judge_configuration(list_misnamed(), list_repeated(), list_files())
    repeated = judge_configuration({}, list_repeated(), list_files())
    well = judge_configuration({}, [], list_files())

    assert misnamed.detail == "no setting has this name: FLEEK_SLOTZ (perhaps FLEEK_SLOTS)"
    assert repeated.detail == "given more than once: FLEEK_PORT (.env.local, line 3)"
    assert (well.verdict, well.detail) == (
        "ok",
        "every setting is understood; files read: fleek.toml, .env.local",
    )
