"""Several workers' samples as one set of families, each named once, told apart by a label."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

log = logging.getLogger(__name__)

PREFIX = "semples_worker_"


def merge(texts: Mapping[str, str]) -> list[Metric]:
    """Merge what workers publish.

    Whatever is no Prometheus text, is not named like a worker's metric, or says another type than
    the workers before (as another version's may) is left out: one worker must not spoil the scrape.

    Args:
        texts: text format by worker.

    Returns:
        Each family once; its samples have a ``worker`` label.
    """
    families: dict[str, Metric] = {}
    for worker, text in texts.items():
        try:
            found = list(text_string_to_metric_families(text))
        except ValueError as error:
            log.warning("worker %s publishes what is no Prometheus text: %s", worker, error)
            continue
        for family in found:
            if family.name.startswith(PREFIX):
                _add(families, family, worker)
    return list(families.values())


def _add(families: dict[str, Metric], family: Metric, worker: str) -> None:
    known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
    if known.type != family.type:
        return
    for sample in family.samples:
        known.add_sample(sample.name, {**sample.labels, "worker": worker}, sample.value)
