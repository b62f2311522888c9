"""Dashboard, alert rules and reference use metrics that exist, by labels that those have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from fleek.core.job import ErrorCode, Reason, Status
from fleek.observability.metrics import LostRecords, Metrics
from fleek.observability.queue_metrics import (
    PausedLane,
    QueueCollector,
    QueueFigures,
    Running,
    Waiting,
)

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/fleek.json").read_text())
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
SCRAPING = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
REFERENCE = (ROOT / "docs/reference/metrics.md").read_text()
RULES = {rule["alert"]: rule for group in ALERTS["groups"] for rule in group["rules"]}
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"] if panel["type"] != "row"}

TARGET = frozenset({"job", "instance"})
"""The labels that Prometheus gives every sample, and those of its own metric `up`."""


@dataclass(frozen=True, slots=True)
class Family:
    """A metric as the page shows it."""

    name: str
    type: str
    labels: frozenset[str]

    def samples(self) -> dict[str, frozenset[str]]:
        """The labels by the names that queries use."""
        if self.type != "histogram":
            return {self.name: self.labels}
        plain = {self.name + suffix: self.labels for suffix in ("_count", "_sum")}
        return plain | {f"{self.name}_bucket": self.labels | {"le"}}


def families() -> Iterator[Family]:
    """Everything that an api and a worker show."""
    metrics = Metrics(["m"])
    metrics.show_slots(1, lambda: 1)
    metrics.registry.register(LostRecords(lambda: 1))
    for collector in metrics.registry._collector_to_names:
        if isinstance(collector, MetricWrapperBase):
            yield _family(collector)
            continue
        for metric in collector.collect():
            labels = frozenset(key for sample in metric.samples for key in sample.labels)
            yield Family(_name(metric.name, metric.type), metric.type, labels)
    everything = QueueFigures(
        [Waiting("q", "m", 1, 1, 1.0)], [Running("q", "m", 1)], [PausedLane("p", "m", "throttled")], 1, 1
    )
    queue = QueueCollector(metrics.model_label)
    queue.figures = everything
    for metric in queue.collect():
        labels = frozenset(key for sample in metric.samples for key in sample.labels)
        yield Family(metric.name, metric.type, labels)


def _family(metric: MetricWrapperBase) -> Family:
    [described] = metric.describe()
    if described.type == "info":
        return Family(f"{described.name}_info", "gauge", frozenset({"version"}))
    return Family(_name(described.name, described.type), described.type, frozenset(metric._labelnames))


def _name(name: str, kind: str) -> str:
    return f"{name}_total" if kind == "counter" else name


FAMILIES = {family.name: family for family in families()}
SAMPLES = {name: labels for family in FAMILIES.values() for name, labels in family.samples().items()}
SAMPLES["up"] = frozenset()


@dataclass(slots=True)
class Used:
    """What an expression names."""

    metrics: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    grouped: set[str] = field(default_factory=set)
    values: dict[str, set[str]] = field(default_factory=dict)


def read(expression: str) -> Used:
    """What is named in an expression; ValueError where Prometheus would not take it."""
    plain = expression.replace("$__rate_interval", "5m").replace("$__range", "1h")
    used = Used()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = node.matchers.matchers
            used.metrics.append((str(node.name), frozenset(one.name for one in matchers)))
            for one in matchers:
                used.values.setdefault(one.name, set()).add(one.value)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            used.grouped |= set(node.modifier.labels)
        elif isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None:
            used.grouped |= set(node.modifier.matching.labels if node.modifier.matching else ())

    promql_parser.walk(promql_parser.parse(plain), visit)
    return used


def wrong(expression: str, legend: Iterable[str] = ()) -> list[str]:
    """What an expression, and the labels that its text shows, name without there being such."""
    used = read(expression)
    unknown = [name for name, _ in used.metrics if name not in SAMPLES]
    if unknown:
        return unknown
    bad = [f"{name}{{{label}}}" for name, labels in used.metrics for label in labels - SAMPLES[name] - TARGET]
    known = frozenset().union(TARGET, *(SAMPLES[name] for name, _ in used.metrics))
    return bad + sorted({*used.grouped, *legend} - known)


EXPRESSIONS = {
    f"{title} {target['refId']}": (target["expr"], re.findall(r"{{(\w+)}}", target["legendFormat"]))
    for title, panel in PANELS.items()
    for target in panel["targets"]
} | {
    name: (rule["expr"], re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
    for name, rule in RULES.items()
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_names_metrics_and_labels_that_exist(name: str) -> None:
    assert wrong(*EXPRESSIONS[name]) == []


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("sum(rate(fleek_made_up_total[5m]))", "fleek_made_up_total"),
        ('fleek_queue_jobs{colour="red"}', "fleek_queue_jobs{colour}"),
        ("sum by (colour) (fleek_queue_jobs)", "colour"),
        ("fleek_queue_jobs unless on (colour) fleek_lane_paused", "colour"),
        ("rate(fleek_attempts[5m])", "fleek_attempts"),
    ],
)
def test_an_expression_that_names_what_does_not_exist_is_found(expression: str, named: str) -> None:
    assert wrong(expression) == [named]


def test_an_expression_that_prometheus_would_refuse_is_found() -> None:
    with pytest.raises(ValueError, match="expected type matrix"):
        wrong("sum(rate(fleek_attempts_total))")


LABEL_VALUES: dict[str, set[str]] = {
    "outcome": set(map(str, Reason)),
    "error_code": {*map(str, ErrorCode), "none"},
    "state": {"due", "scheduled", "processing"},
    "event": {"sent", "failed", "received"},
    "reason": {*map(str, ErrorCode), "operator"},
    "status": {*map(str, Status), "2xx", "3xx", "4xx", "5xx", "none"},
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_compares_labels_with_values_that_they_can_have(name: str) -> None:
    for label, values in read(EXPRESSIONS[name][0]).values.items():
        if label in LABEL_VALUES:
            assert {part for value in values for part in value.split("|")} <= LABEL_VALUES[label]


def test_the_reference_describes_every_metric_of_ours_as_it_is() -> None:
    rows = re.findall(r"^\| `(fleek_\w+)` \| (\w+) \|(.*?)\| (.+) \|$", REFERENCE, re.MULTILINE)
    described = {
        name: Family(name, kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows
    }
    ours = {name: family for name, family in FAMILIES.items() if name.startswith("fleek_")}

    assert len(rows) == len(described)
    assert described == ours


def test_the_reference_describes_every_label_of_ours() -> None:
    described = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", REFERENCE, re.MULTILINE))))
    labels = {
        label for name, family in FAMILIES.items() if name.startswith("fleek_") for label in family.labels
    }

    assert labels - {"version"} <= described


def test_every_panel_has_an_id_a_place_a_unit_and_the_chosen_data_source() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    chosen = {"type": "prometheus", "uid": "${datasource}"}

    assert len(ids) == len(set(ids))
    assert DASHBOARD["templating"]["list"][0]["type"] == "datasource"
    for panel in PANELS.values():
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == chosen
        assert all(target["datasource"] == chosen for target in panel["targets"])


def test_no_two_panels_lie_on_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]

    assert max(x for x, _ in taken) == 23


def test_every_variable_of_the_dashboard_is_there_and_asks_for_what_exists() -> None:
    variables: dict[str, Any] = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$(?!__)(\w+)", json.dumps([panel["targets"] for panel in PANELS.values()])))

    assert used | {"datasource"} == set(variables)
    for variable in variables.values():
        for metric, label in re.findall(r"label_values\((\w+), (\w+)\)", json.dumps(variable)):
            assert label in SAMPLES[metric] | TARGET


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_an_alert_says_what_is_wrong_what_to_do_and_where_that_is_explained(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^## (.+)$", (ROOT / page).read_text(), re.MULTILINE)

    assert rule["annotations"].keys() == {"summary", "action", "runbook"}
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert anchor in map(_anchor, headings)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if "for" not in rule])
def test_an_alert_on_one_event_sees_a_first_one_too(name: str) -> None:
    """`increase` sees none where the series begins with it."""
    page = Metrics(["m"]).render().decode() + "fleek_log_records_dropped_total "
    expression = RULES[name]["expr"]
    for metric in re.findall(r"increase\((\w+)[^>]*> 0", expression):
        begins_at_zero = re.search(rf"^{metric}[{{ ]", page, re.MULTILINE)

        assert begins_at_zero or re.search(rf"unless {metric}\S* offset", expression)


def test_the_alert_on_a_throttled_model_outlives_the_moments_between_two_pauses() -> None:
    used = read(RULES["FleekModelThrottled"]["expr"])

    assert "fleek_lane_pauses_total" in {name for name, _ in used.metrics}


@pytest.mark.parametrize("name", ["FleekJobsLate", "FleekQueueUnserved"])
def test_jobs_of_a_model_that_is_paused_are_nobodys_alarm(name: str) -> None:
    gauges = re.findall(
        r"\((?:\s*max by \(queue, model\) )?\(?fleek_queue_(?:jobs\{state=\"due\"\}|oldest_age_seconds)\)",
        RULES[name]["expr"],
    )

    assert len(gauges) == RULES[name]["expr"].count("unless on (model)") > 0


def test_every_alert_is_explained_in_the_guide() -> None:
    guide = (ROOT / "docs/guides/operations.md").read_text()

    assert set(re.findall(r"`(Fleek\w+)`", guide)) == set(RULES)


def test_the_example_configuration_reads_the_rules_and_knows_both_kinds_of_processes() -> None:
    assert SCRAPING["rule_files"] == ["alerts.yml"]
    assert {job["job_name"] for job in SCRAPING["scrape_configs"]} == {"fleek-api", "fleek-worker"}
