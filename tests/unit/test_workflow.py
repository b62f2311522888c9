"""The workflow of the continuous integration: that it is one, and that what it runs exists."""

from __future__ import annotations

import json
import os
import re
from importlib.resources import files
from typing import Any

import jsonschema
import yaml
from tests import compose
from tests.compose import ROOT

SCHEMA = files("check_jsonschema") / "builtin_schemas" / "vendor" / "github-workflows.json"


def _workflow() -> dict[str, Any]:
    document: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    # YAML 1.1 reads the word `on` as a boolean.
    return document | {"on": document.pop(True)}


def _commands(job: str) -> str:
    return "\n".join(step["run"] for step in _workflow()["jobs"][job]["steps"] if "run" in step)


def test_the_workflow_is_valid() -> None:
    schema = json.loads(SCHEMA.read_text())
    errors = jsonschema.validators.validator_for(schema)(schema).iter_errors(_workflow())

    assert [error.message for error in errors] == []


def test_every_job_has_a_time_limit_and_no_right_to_write() -> None:
    workflow = _workflow()

    assert workflow["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 30 for job in workflow["jobs"].values())


def test_the_image_is_built_started_used_and_removed() -> None:
    commands = _commands("image")
    steps = (
        "compose build",
        "up --detach --wait",
        "deploy/image/check",
        "--scale worker=3",
        "down --volumes",
    )
    positions = [commands.index(step) for step in steps]

    assert positions == sorted(positions)
    assert _workflow()["jobs"]["image"]["steps"][-1] == {
        "if": "always()",
        "run": "docker compose down --volumes",
    }


def test_what_the_jobs_name_exists() -> None:
    commands = "\n".join(_commands(job) for job in _workflow()["jobs"])
    scripts = set(re.findall(r"(?:deploy|script|\.ci)/[\w/.-]+", commands))
    services = set(re.findall(r"--no-TTY (\w+)|codes (\w+)|--scale (\w+)=", commands))

    assert scripts >= {"deploy/image/check", ".ci/run"}
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)
    assert {name for found in services for name in found if name} <= compose.services().keys()
    assert (ROOT / "docker-compose.services.yml").is_file()
