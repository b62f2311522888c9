"""The page that maps what was asked for names only what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from fleek.api.app import create_app
from fleek.cli.main import app as command_line
from fleek.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/requirements-map.md").read_text()
NAMED = sorted(set(re.findall(r"`([^`]+)`", PAGE)))
FOLDERS = ("src/", "tests/", "docs/", "script/", "deploy/", "benchmarks/", ".ci/", ".github/")
IN_THE_ROOT = re.compile(r"docker-compose[a-z.]*\.yml|Dockerfile|alembic\.ini|\.env(\.[a-z]+)?\.example")
ROUTE = re.compile(r"(GET|POST|DELETE) (/\S*)")
ROWS = re.findall(r"^\| (?!asked for|---)(.+?) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)

PATHS = [name for name in NAMED if name.startswith(FOLDERS) or IN_THE_ROOT.fullmatch(name)]
ROUTES = [name for name in NAMED if ROUTE.fullmatch(name)]
COMMANDS = [name for name in NAMED if name.startswith("fleek ")]
SETTINGS = [name for name in NAMED if name.startswith(PREFIX)]


@pytest.mark.parametrize("path", PATHS)
def test_every_path_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_answers(route: str) -> None:
    method, path = route.split(" ")
    current = f"/v1{path}" if path.startswith("/media") else path
    served = {
        (verb, re.sub(r":\w+}", "}", getattr(one, "path", "")))
        for one in create_app(Settings()).router.routes
        for verb in getattr(one, "methods", None) or ()
    }

    assert (method, current) in served


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists_with_its_options(command: str) -> None:
    _, *words = command.split()
    here = get_command(command_line)
    for word in words:
        if word.startswith("--"):
            assert word in [option for parameter in here.params for option in parameter.opts]
        else:
            here = getattr(here, "commands")[word]  # noqa: B009  the parser's type is private


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_exists(setting: str) -> None:
    assert setting.removeprefix(PREFIX).lower() in Settings.model_fields


def test_every_row_says_where_to_see_it() -> None:
    lacking = [asked for asked, _, where in ROWS if "`" not in where and "](" not in where]

    assert len(ROWS) >= 28
    assert lacking == []
    assert all((PATHS, ROUTES, COMMANDS, SETTINGS))
