"""What Prometheus reads of a scrape, for tests."""

from typing import Self

import httpx
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """One scrape's families, each of which is there once, and their samples."""

    def __init__(self, text: str) -> None:
        names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
        if len(names) != len(set(names)):
            raise ValueError(f"expected each family once, got {sorted(names)}")
        self.families: dict[str, Metric] = {family.name: family for family in text_string_to_metric_families(text)}

    @classmethod
    def of(cls, api: httpx.Client) -> Self:
        answer = api.get("/metrics")
        answer.raise_for_status()
        return cls(answer.text)

    def values(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """A metric's samples by the values of some of its labels; the others are summed over."""
        found: dict[tuple[str, ...], float] = {}
        for family in self.families.values():
            for sample in family.samples:
                if sample.name == name:
                    key = tuple(sample.labels[label] for label in labels)
                    found[key] = found.get(key, 0.0) + sample.value
        return found

    def value(self, name: str) -> float:
        """The sum of a metric's samples."""
        return sum(self.values(name).values())
