"""The Dockerfile and its context, without building it: `tests/integration/test_image.py` takes its steps."""

from __future__ import annotations

import re
import tomllib

import pytest
from tests import compose, dockerfile
from tests.compose import ROOT

USER = "10001:10001"
HOME = "/var/lib/fleek"


@pytest.mark.parametrize("source", dockerfile.copied_from_checkout())
def test_everything_that_is_copied_exists_and_is_sent(source: str) -> None:
    path = ROOT / source
    inside = [name for name in dockerfile.files_below(path) if "__pycache__" not in name]

    assert path.exists()
    assert all(dockerfile.is_sent(name) for name in (inside if path.is_dir() else [source]))


@pytest.mark.parametrize(
    "path",
    [
        *(".git/config", ".env", ".env.local", "fleek.toml", "deploy/config/fleek.toml"),
        *(".venv/bin/python", ".tools/bin/uv", "tests/conftest.py", "docs/README.md", "benchmarks/load.py"),
        *("src/fleek/__pycache__/main.cpython-313.pyc", "requirements/dev.txt", "deploy/localstack/keys.env"),
        "docker-compose.yml",
    ],
)
def test_nothing_else_is_sent(path: str) -> None:
    assert not dockerfile.is_sent(path)


def test_what_is_sent_is_what_is_copied() -> None:
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)

    assert sorted(let_in) == sorted(dockerfile.copied_from_checkout())


def test_both_stages_begin_with_one_pinned_python() -> None:
    """The environment's programs are those of the stage that made it."""
    froms = [found for found in dockerfile.instructions() if found.name == "FROM"]
    image = next(found for found in dockerfile.instructions() if found.name == "ARG").text

    assert [found.words()[0] for found in froms] == ["${PYTHON_IMAGE}"] * 2
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+\.\d+-slim-bookworm", image)


def test_the_image_carries_the_version_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    given = [found.text for found in dockerfile.instructions() if found.name == "ARG"]

    assert f"VERSION={project['version']}" in given
    assert f'licenses="{project["license"]}"' in dockerfile.last("LABEL").text


def test_it_runs_as_a_numeric_user_who_owns_only_the_home() -> None:
    """A number, because Kubernetes cannot tell whether a name is root's."""
    owned = [found.text for found in dockerfile.instructions() if "--owner" in found.text]

    assert dockerfile.last("USER").text == USER
    assert len(owned) == 1
    assert re.search(rf"--owner=10001 --group=10001 --mode=0700 {HOME}\b", owned[0])
    assert not [found for found in dockerfile.instructions() if "--chown" in found.text]


def test_what_is_written_goes_where_a_volume_is() -> None:
    environment = dockerfile.environment()

    assert dockerfile.last("VOLUME").text == HOME
    assert {environment[name] for name in ("HOME", "TMPDIR", "FLEEK_HOME")} == {HOME}
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"
    for name in ("api", "worker", "migrate", "storage-init"):
        service = compose.services()[name]
        assert f"home:{HOME}" in service["volumes"]
        assert service["environment"]["FLEEK_HOME"] == HOME


def test_the_configuration_is_read_from_the_folder_that_compose_mounts() -> None:
    working = dockerfile.last("WORKDIR").text

    assert f"./deploy/config:{working}:ro" in compose.services()["api"]["volumes"]


def test_the_image_takes_any_role_and_leaves_health_to_it() -> None:
    names = [found.name for found in dockerfile.instructions()]

    assert dockerfile.last("CMD").words() == ["fleek", "api"]
    assert "ENTRYPOINT" not in names
    assert dockerfile.last("HEALTHCHECK").text == "NONE"
    assert dockerfile.last("STOPSIGNAL").text == "SIGTERM"


def test_the_steps_of_the_build_are_those_that_the_tests_take() -> None:
    final = max(found.stage for found in dockerfile.instructions())
    building = [
        found.words() for found in dockerfile.instructions() if found.name == "RUN" and found.stage < final
    ]

    assert building == [["deploy/image/build", step, "/opt/fleek"] for step in ("packages", "fleek")]
    assert dockerfile.environment()["PATH"].startswith("/opt/fleek/bin:")
