"""What commands print, and how they end."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from tests.raw_server import RawServer, reply

from fleek import __version__
from fleek.cli.exits import CommandError, ExitCode, as_command_error
from fleek.cli.main import execute
from fleek.cli.output import Output, _shorten, clean, problem, to_json
from fleek.core.errors import (
    ConfigurationError,
    Conflict,
    DatabaseUnavailable,
    FleekError,
    InvalidCursor,
    NotFound,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a lighthouse at dawn", "a lighthouse at dawn"),
        ("灯台 🌅 é", "灯台 🌅 é"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b31mC1", "\\x9b31mC1"),
        ("bell\x07 and del\x7f", "bell\\x07 and del\\x7f"),
        ("two\nlines\r\tand a tab", "two\\nlines\\r\\tand a tab"),
        ("right\u202eto left\u2066", "right\\u202eto left\\u2066"),
        ("half \ud83d", "half \\ud83d"),
        ("[red]markup[/red]", "[red]markup[/red]"),
    ],
)
def test_control_characters_are_shown_instead_of_obeyed(text: str, shown: str) -> None:
    assert clean(text) == shown


@pytest.mark.parametrize(
    "text", ["\x1b[2J", "\x9b2J", "\u202e", "\ud83d", "\u2028", 'quote " and \\', "灯台"]
)
def test_json_holds_no_control_characters_and_reads_back_the_same(text: str) -> None:
    printed = to_json({"prompt": text}, indent=2)

    assert clean(printed.replace("\n", "")) == printed.replace("\n", "")
    assert json.loads(printed) == {"prompt": text}


def test_rows_are_tab_separated_where_no_terminal_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    Output().rows(("ID", "OK", "PROMPT"), [("1", True, "a\tb\x1b[31m"), ("2", None, ["x"])])

    assert capsys.readouterr().out == '1\tyes\ta\\tb\\x1b[31m\n2\t\t["x"]\n'


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("2026-11-20T12:00:00.123Z", "0s ago"),
        ("2026-11-20T11:58:30Z", "90s ago"),
        ("2026-11-20T11:57:30Z", "2m ago"),
        ("2026-11-20T09:30:00Z", "2h ago"),
        ("2026-10-20T12:00:00Z", "31d ago"),
        ("2026-11-20", "2026-11-20"),
    ],
)
def test_a_table_shows_the_age_of_moments(cell: str, shown: str) -> None:
    assert _shorten(cell, datetime(2026, 11, 20, 12, tzinfo=UTC)) == shown


def test_with_json_nothing_but_data_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)

    output.note("Accepted", "a hint")
    output.warn("Careful")
    output.line({"a": 1})

    assert capsys.readouterr() == ('{"a": 1}\n', "")


def test_notes_and_hints_stand_on_lines_of_their_own_on_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Output().note("Accepted\x1b", "go on")

    assert capsys.readouterr() == ("", "Accepted\\x1b\nhint: go on\n")


@pytest.mark.parametrize(
    ("error", "exit_code", "code"),
    [
        (ConfigurationError("FLEEK_PORT: not a number"), ExitCode.USAGE, "configuration_error"),
        (InvalidCursor(), ExitCode.USAGE, "invalid_cursor"),
        (DatabaseUnavailable(), ExitCode.UNREACHABLE, "database_unavailable"),
        (NotFound("job"), ExitCode.FAILED, "not_found"),
        (Conflict("another one runs"), ExitCode.FAILED, "conflict"),
        (FleekError("anything else"), ExitCode.FAILED, "internal_error"),
    ],
)
def test_every_error_of_fleek_has_an_exit_code(error: FleekError, exit_code: ExitCode, code: str) -> None:
    seen = as_command_error(error)

    assert (seen.exit_code, seen.problem_code, seen.message) == (exit_code, code, error.message)


def test_a_problem_keeps_what_the_server_said_and_adds_the_exit_code_and_the_hint() -> None:
    facts = {"type": "urn:fleek:problem:gone", "title": "Gone", "status": 410, "code": "gone"}
    error = CommandError("It is gone", exit_code=ExitCode.USAGE, code="gone", hint="look away", facts=facts)

    assert problem(error) == {**facts, "detail": "It is gone", "hint": "look away", "exit_code": 2}


class TestProgram:
    """`execute` never raises, and never shows a traceback unless asked."""

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert execute(["--version"]) == ExitCode.OK
        assert capsys.readouterr().out == f"{__version__}\n"

    @pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
    def test_help_tells_the_commands_and_the_exit_codes(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert execute(arguments) == ExitCode.OK

        text = capsys.readouterr().out
        listed = [line.split()[0] for line in text.partition("Commands:")[2].splitlines() if line.strip()]
        assert listed[:8] == ["generate", "jobs", "models", "up", "doctor", "api", "worker", "health"]
        assert "124 --timeout" in text

    @pytest.mark.parametrize(
        ("arguments", "message", "hint"),
        [
            (["paint"], "No such command 'paint'", "`fleek --help`"),
            (["generate"], "Missing argument 'PROMPT'", "`fleek generate --help`"),
            (["generate", "x", "--wat"], "No such option: --wat", "`fleek generate --help`"),
            (["generate", "x", "--seed", "many"], "Invalid value for '--seed'", "`fleek generate --help`"),
            (["jobs"], "Missing command", "`fleek jobs --help`"),
            (["jobs", "get", "../models"], "'../models' is not the id of a job", "`fleek jobs ls`"),
        ],
    )
    def test_a_wrong_command_line_is_a_usage_error_with_a_hint(
        self, arguments: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert execute([*arguments, *(["--url", "http://127.0.0.1:9"] if "get" in arguments else [])]) == 2

        said = capsys.readouterr()
        first, second = said.err.splitlines()
        assert said.out == ""
        assert first.startswith(f"error: {message}")
        assert not first.endswith(".")
        assert second.startswith(f"hint: {hint}")

    def test_with_json_a_usage_error_is_a_problem_too(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert execute(["models", "ls", "--json", "--wat"]) == ExitCode.USAGE

        said = capsys.readouterr()
        document = json.loads(said.err)
        assert said.out == ""
        assert (document["code"], document["exit_code"]) == ("usage", 2)

    def test_a_prompt_that_reads_like_an_option_does_not_switch_to_json(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert execute(["generate", "--url", "http://127.0.0.1:9", "--", "--json"]) == ExitCode.UNREACHABLE
        assert capsys.readouterr().err.startswith("error: ")

    @pytest.mark.parametrize("debug", ["", "1"])
    def test_a_bug_is_one_line_and_the_trace_comes_on_request(
        self, debug: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("FLEEK_DEBUG", debug)
        with RawServer() as server:
            server.on("GET /v1/models", reply({"something": "else"}))
            code = execute(["models", "ls", "--url", server.url])

        said = capsys.readouterr().err
        assert code == ExitCode.BUG
        assert "error: Something that nobody expected happened: KeyError: 'items'\n" in said
        assert "hint: FLEEK_DEBUG=1 shows where" in said
        assert ("Traceback" in said) is bool(debug)
