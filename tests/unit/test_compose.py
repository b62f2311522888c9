"""The compose files, against the compose schema and against the code that they start."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from tests import compose
from tests.compose import ROOT, SERVICES, WHOLE
from typer.main import get_command

from fleek.cli.main import app
from fleek.settings import PREFIX, Settings
from fleek.tasks.runtime import _STOP_MARGIN

SCHEMAS = files("check_jsonschema") / "builtin_schemas" / "vendor"
OURS = ("migrate", "storage-init", "api", "worker")
ONE_SHOTS = ("migrate", "storage-init")
EXAMPLES = (".env.example", ".env.local.example")
ALL = compose.services()


def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_text())
    return schema


@pytest.mark.parametrize("name", [WHOLE, SERVICES])
def test_a_compose_file_is_valid_as_written_and_when_filled_in(name: str) -> None:
    schema = _schema("compose-spec")
    for document in (compose.read(name), compose.load(name)):
        errors = jsonschema.validators.validator_for(schema)(schema).iter_errors(document)

        assert [error.message for error in errors] == []


def test_the_whole_repeats_nothing_of_the_services() -> None:
    written, included = compose.read(WHOLE), compose.read(SERVICES)

    assert written["include"] == [SERVICES]
    assert written["services"].keys() == set(OURS)
    assert included["services"].keys() == {"postgres", "redis", "localstack"}
    assert not written["volumes"].keys() & included["volumes"].keys()


@pytest.mark.parametrize("name", [WHOLE, SERVICES])
def test_every_variable_has_a_default(name: str) -> None:
    assert compose.variables_without_default(name) == set()
    assert not [word for word in compose.words(compose.load(name)) if "${" in word]


@pytest.mark.parametrize("name", [WHOLE, SERVICES, *EXAMPLES, "deploy/localstack/keys.env"])
def test_every_setting_that_is_named_exists(name: str) -> None:
    named = set(re.findall(rf"\b{PREFIX}([A-Z_]+)", (ROOT / name).read_text()))

    assert {setting.lower() for setting in named} <= set(Settings.model_fields)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_other_variable_of_an_example_is_one_that_somebody_reads(name: str) -> None:
    named = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / name).read_text(), re.MULTILINE))
    read_by_compose = compose.variables(WHOLE) | compose.variables(SERVICES)
    standard = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}

    assert named
    assert {name for name in named if not name.startswith(PREFIX)} <= read_by_compose | standard


def test_the_example_is_short_and_shows_the_defaults() -> None:
    text = (ROOT / ".env.example").read_text()
    shown = dict(re.findall(r"^#([A-Z_]+)=(.+)$", text, re.MULTILINE))

    assert len(text.splitlines()) <= 15
    for name, value in shown.items():
        assert re.search(
            rf"\$\{{{name}:?-{re.escape(value)}\}}", (ROOT / WHOLE).read_text() + _services_text()
        )


def _services_text() -> str:
    return (ROOT / SERVICES).read_text()


def test_local_files_with_secrets_are_never_committed() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()

    assert {".env", ".env.local", "/deploy/config/fleek.toml"} <= set(ignored)


def test_a_clean_clone_has_no_env_file_and_needs_none() -> None:
    for name in OURS:
        optional = [entry for entry in ALL[name]["env_file"] if not isinstance(entry, str)]
        needed = [entry for entry in ALL[name]["env_file"] if isinstance(entry, str)]

        assert optional == [{"path": ".env", "required": False}]
        assert all((ROOT / entry).is_file() for entry in needed)


def _commands() -> Iterator[tuple[str, list[str]]]:
    """Every command line of ours that a container runs."""
    for name in OURS:
        yield name, ALL[name]["command"]
        test = ALL[name].get("healthcheck", {}).get("test", ())
        if test:
            assert test[0] == "CMD"
            yield f"{name}, its health", test[1:]


@pytest.mark.parametrize("command", [pytest.param(command, id=name) for name, command in _commands()])
def test_every_command_exists_with_its_options(command: list[str]) -> None:
    if command[0] == "prestart":
        assert (ROOT / "script" / "prestart").is_file()
        command = command[1:] or ["fleek"]

    assert command[0] == "fleek"
    node: Any = get_command(app)
    words = iter(command[1:])
    options = {option for parameter in node.params for option in parameter.opts}
    for word in words:
        inner = getattr(node, "commands", {}).get(word)
        if inner is not None:
            node = inner
            options = {option for parameter in node.params for option in parameter.opts}
        elif word.startswith("-"):
            assert word.partition("=")[0] in options
        else:
            assert any(parameter.param_type_name == "argument" for parameter in node.params), word


def _waits_for(name: str) -> dict[str, str]:
    wanted = ALL[name].get("depends_on", {})
    return {other: str(how["condition"]) for other, how in wanted.items()}


def test_every_wait_can_end() -> None:
    """A service that is waited for says when it is healthy, or ends by itself."""
    for name in ALL:
        for other, condition in _waits_for(name).items():
            if condition == "service_healthy":
                assert "healthcheck" in ALL[other], f"{name} waits for {other}"
            else:
                assert condition == "service_completed_successfully"
                assert ALL[other]["restart"] == "no"


def _everything_before(name: str, path: tuple[str, ...] = ()) -> set[str]:
    assert name not in path, f"a circle: {path}"
    found: set[str] = set()
    for other in _waits_for(name):
        found |= {other} | _everything_before(other, (*path, name))
    return found


@pytest.mark.parametrize("name", ["api", "worker"])
def test_a_process_begins_when_all_that_it_needs_is_ready(name: str) -> None:
    assert _everything_before(name) == {"postgres", "redis", "localstack", *ONE_SHOTS}


def test_one_shots_are_waited_for_so_that_up_wait_takes_their_end_for_success() -> None:
    waited_for = {other for name in ALL for other in _waits_for(name)}

    assert set(ONE_SHOTS) <= waited_for
    assert [name for name in ALL if ALL[name]["restart"] == "no"] == list(ONE_SHOTS)
    assert all(ALL[name]["restart"] == "unless-stopped" for name in ALL if name not in ONE_SHOTS)


def test_everything_that_stays_says_whether_it_is_healthy() -> None:
    assert [name for name in ALL if name not in ONE_SHOTS and "healthcheck" not in ALL[name]] == []


def test_a_worker_can_be_started_several_times() -> None:
    assert not {"container_name", "ports", "hostname"} & ALL["worker"].keys()


def _default(setting: str) -> float:
    return float(Settings.model_fields[setting].default)


def test_a_worker_gets_the_time_that_its_stop_may_take() -> None:
    given = int(ALL["worker"]["stop_grace_period"].removesuffix("s"))

    assert given > _default("shutdown_grace") + _STOP_MARGIN


def test_one_service_builds_the_image_and_none_is_looked_for_in_a_registry() -> None:
    assert [name for name in ALL if "build" in ALL[name]] == ["migrate"]
    assert {ALL[name]["image"] for name in OURS} == {"fleek:local"}
    assert {ALL[name]["pull_policy"] for name in OURS} == {"never"}


def test_images_of_others_are_pinned() -> None:
    images = {name: ALL[name]["image"] for name in ALL if name not in OURS}

    assert images.keys() == {"postgres", "redis", "localstack"}
    for image in images.values():
        assert re.search(r":\d+(\.\d+)*(-\w+)?$", image), image
    assert images["localstack"].startswith("localstack/localstack:4.14")


def _limits(service: dict[str, Any]) -> dict[str, Any]:
    limits: dict[str, Any] = service["deploy"]["resources"]["limits"]
    return limits


@pytest.mark.parametrize("name", ALL)
def test_everything_is_limited_by_variables_of_its_own(name: str) -> None:
    limits, written = _limits(ALL[name]), _limits(_written(name))
    prefix = f"${{{'MIGRATE' if name in ONE_SHOTS else name.upper()}_"

    assert compose.bytes_of(limits["memory"]) >= 256 * 1024**2
    assert limits["cpus"] == "1", "an engine refuses more than its machine has"
    assert limits["pids"] > 0
    assert written["memory"].startswith(f"{prefix}MEMORY:-")
    assert written["cpus"].startswith(f"{prefix}CPUS:-")


def _written(name: str) -> dict[str, Any]:
    both: dict[str, dict[str, Any]] = compose.read(WHOLE)["services"] | compose.read(SERVICES)["services"]
    return both[name]


@pytest.mark.parametrize("name", ALL)
def test_nothing_has_more_rights_than_it_needs(name: str) -> None:
    service = ALL[name]

    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    # LocalStack unpacks what it needs at its start.
    assert service.get("read_only", False) is (name != "localstack")
    if name in OURS:
        assert "cap_add" not in service
        assert service["tmpfs"] == ["/tmp"]
        assert service["init"] is True


def test_redis_keeps_less_than_it_may_and_writes_nothing_down() -> None:
    command = ALL["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))

    assert options["--save"] == ""
    assert options["--appendonly"] == "no"
    assert options["--maxmemory-policy"] == "volatile-lru"
    assert compose.bytes_of(options["--maxmemory"][:-1]) * 2 <= compose.bytes_of(
        _limits(ALL["redis"])["memory"]
    )


def test_postgres_has_a_connection_for_everyone_and_keeps_its_data() -> None:
    pool = _default("database_pool_size") + _default("database_max_overflow")
    command = ALL["postgres"]["command"]
    api_and_three_workers = 4

    assert int(command[-1].removeprefix("max_connections=")) >= pool * api_and_three_workers
    assert ALL["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"], "PostgreSQL 18's data is below it"


def test_every_volume_is_declared_and_every_folder_is_there() -> None:
    declared = compose.load(WHOLE)["volumes"].keys()
    mounted = {mount.partition(":")[0] for service in ALL.values() for mount in service.get("volumes", ())}

    assert {name for name in mounted if not name.startswith(".")} == declared
    for path in (name for name in mounted if name.startswith(".")):
        assert any((ROOT / path).iterdir()), path
