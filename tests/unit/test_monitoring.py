"""Prometheus and Grafana in containers: `docker-compose.monitoring.yml` and what it mounts."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
import yaml
from tests import compose
from tests.compose import ROOT, WHOLE

NAME = "docker-compose.monitoring.yml"
ADDED: dict[str, dict[str, Any]] = compose.load(NAME)["services"]
FLEEK = compose.services()


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_the_file_is_valid_as_written_and_when_filled_in() -> None:
    path = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(path.read_text())
    for document in (compose.read(NAME), compose.load(NAME)):
        errors = jsonschema.validators.validator_for(schema)(schema).iter_errors(document)

        assert [error.message for error in errors] == []


def test_every_variable_has_a_default() -> None:
    assert compose.variables_without_default(NAME) == set()


def test_it_adds_two_services_and_changes_none() -> None:
    assert ADDED.keys() == {"prometheus", "grafana"}
    assert not ADDED.keys() & FLEEK.keys()
    assert not compose.load(NAME)["volumes"].keys() & compose.load(WHOLE)["volumes"].keys()


@pytest.mark.parametrize("name", ADDED)
def test_a_service_is_pinned_limited_without_rights_and_published_on_loopback_only(name: str) -> None:
    service = ADDED[name]

    assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert {"mem_limit", "cpus", "pids_limit", "healthcheck"} <= service.keys()
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


@pytest.mark.parametrize("name", ADDED)
def test_what_is_mounted_is_there_and_cannot_be_changed(name: str) -> None:
    for mount in ADDED[name]["volumes"]:
        source, _, rest = mount.partition(":")
        if source.startswith("."):
            assert any((ROOT / source).iterdir())
            assert rest.endswith(":ro")
        else:
            assert source in compose.load(NAME)["volumes"]


def test_prometheus_scrapes_the_ports_that_fleek_has_there() -> None:
    api, worker = read("deploy/prometheus/compose.yml")["scrape_configs"]
    [discovery] = worker["dns_sd_configs"]
    port = FLEEK["api"]["environment"]["FLEEK_PORT"]

    assert api["static_configs"] == [{"targets": [f"api:{port}"]}]
    assert "api" in FLEEK["api"]["environment"]["FLEEK_ALLOWED_HOSTS"].split(",")
    assert discovery["names"] == ["worker"]
    assert str(discovery["port"]) == FLEEK["worker"]["environment"]["FLEEK_WORKER_PORT"]
    assert FLEEK["worker"]["environment"]["FLEEK_WORKER_HOST"] == "0.0.0.0"  # noqa: S104  in its container


def test_both_ways_to_run_prometheus_have_the_same_jobs_and_rules() -> None:
    mine, theirs = read("deploy/prometheus/prometheus.yml"), read("deploy/prometheus/compose.yml")

    assert [job["job_name"] for job in mine["scrape_configs"]] == [
        job["job_name"] for job in theirs["scrape_configs"]
    ]
    assert mine["rule_files"] == theirs["rule_files"] == ["alerts.yml"]


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    [source] = read("deploy/grafana/provisioning/datasources/fleek.yml")["datasources"]
    [provider] = read("deploy/grafana/provisioning/dashboards/fleek.yml")["providers"]
    mounts = dict(mount.split(":")[:2] for mount in ADDED["grafana"]["volumes"])
    home = ADDED["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]

    assert source["url"] == "http://prometheus:9090"
    assert provider["options"]["path"] == mounts["./deploy/grafana"]
    assert home == f"{mounts['./deploy/grafana']}/fleek.json"
    assert (ROOT / "deploy/grafana/fleek.json").is_file()


def test_nobody_can_log_in_to_grafana_with_the_password_that_it_comes_with() -> None:
    environment = ADDED["grafana"]["environment"]

    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
