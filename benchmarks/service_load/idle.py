"""Our real worker whose steps do nothing: what is left is its own work with the queue; ``benchmarks.serve`` runs it.

The first job is worked on; whatever comes later is given the first one's photo and result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from tests.helpers.service_doubles import DoublePredictor, Info
from worker.__main__ import run_worker
from worker.inference import batcher, consumer
from worker.settings import WorkerSettings

IDLE = "idle"


class IdlePredictor(DoublePredictor):
    """A model of its own name, hence with a queue of its own."""

    info = Info(name=IDLE)


def _once(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step that is done once and then known."""
    known: list[Any] = []

    @wraps(step)
    def know(*given: Any, **named: Any) -> Any:
        if not known:
            known.append(step(*given, **named))
        return known[0]

    return know


def load(settings: WorkerSettings) -> Any:
    """Return the predictor, whatever the settings are."""
    del settings
    return IdlePredictor()


if __name__ == "__main__":
    sys.argv[0] = IDLE
    # Imported by these modules, and replaced there.
    consumer.preprocess = _once(consumer.preprocess)  # type: ignore[attr-defined]
    batcher.postprocess = _once(batcher.postprocess)  # type: ignore[attr-defined]
    run_worker(sys.argv[1:], load=load)
