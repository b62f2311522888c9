"""Reads a page of metrics as Prometheus does."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from fleek.observability.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Page:
    """The samples of one page, by their name and labels."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def value(self, name: str, **labels: str) -> float:
        """The one sample of exactly these labels; 0 where there is none."""
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def series(self, name: str) -> dict[tuple[str, ...], float]:
        """Every sample of a name that is not 0, by the values of its labels in the order of their names."""
        return {
            tuple(value for _, value in sorted(labels)): value_of
            for (found, labels), value_of in self.samples.items()
            if found == name and value_of
        }

    def names(self) -> set[str]:
        """Of all samples."""
        return {name for name, _ in self.samples}


def parse(text: str) -> Page:
    """A page; ValueError where Prometheus would refuse it, AssertionError where a sample comes twice."""
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in samples, key
            samples[key] = sample.value
    return Page(samples)


def scrape(metrics: Metrics) -> Page:
    """What a process of this test has counted."""
    return parse(metrics.render().decode())
