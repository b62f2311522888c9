"""The reference page of the command says what the command does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from fleek.cli.exits import ExitCode
from fleek.cli.main import app, execute

_PAGE = (Path(__file__).parent.parent.parent / "docs" / "reference" / "cli.md").read_text()
_LONG_RUNNING = {"up", "api", "worker"}


def _section(title: str) -> str:
    return _PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def _commands() -> dict[str, list[str]]:
    """Every command and its options."""
    found: dict[str, list[str]] = {}
    root = get_command(app)
    for name, command in getattr(root, "commands").items():  # noqa: B009  the parser's type is private
        for inner, leaf in getattr(command, "commands", {"": command}).items():
            options = [option for parameter in leaf.params for option in parameter.opts]
            found[f"{name} {inner}".strip()] = [option for option in options if option.startswith("--")]
    return found


def test_every_exit_code_has_its_row() -> None:
    rows = re.findall(r"^\| (\d+) \|", _section("Exit codes"), re.MULTILINE)

    assert [int(row) for row in rows] == list(ExitCode)


@pytest.mark.parametrize("command", sorted(_commands()))
def test_every_option_is_named_where_its_command_is_described(command: str) -> None:
    text = _PAGE if command != "generate" else _section("`fleek generate PROMPT`")

    assert [option for option in _commands()[command] if option not in text and option != "--help"] == []


@pytest.mark.parametrize("command", sorted(_commands()))
def test_every_command_that_ends_knows_json(command: str) -> None:
    assert ("--json" in _commands()[command]) is (command not in _LONG_RUNNING)


@pytest.mark.parametrize("command", sorted(_commands()))
def test_every_command_has_help_without_a_full_stop_in_its_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute([*command.split(), "--help"]) == ExitCode.OK

    options = capsys.readouterr().out.partition("Options:")[2].replace("Show this message and exit.", "")
    assert not re.search(r"\.$", options, re.MULTILINE)
