"""A predictor that misbehaves on demand, and a worker and a stack that run it.

What a job does is said by its labels: "cat" and "bowl" are segmented, "slow" takes its time,
"raises" raises, "hangs" never comes back, "kills" takes the process down, "huge" has no memory.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from models.data.classes import ClassInfo, ClassList
from worker.main import make_app
from worker.runtime import PredictorLike
from worker.settings import WorkerSettings

NAMES = ("cat", "bowl", "dining table", "slow", "raises", "hangs", "kills", "huge")
SLOW_SECONDS = 2.0


@dataclass(frozen=True)
class Options:
    refine: str
    background_threshold: float
    min_confidence: float


@dataclass(frozen=True)
class ClassOutcome:
    index: int
    name: str
    area: float
    confidence: float | None
    alignment_class: float | None
    alignment_background: float | None
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Outcome:
    label_map: NDArray[np.uint8]
    confidence: NDArray[np.float16]
    scores: NDArray[np.float16]
    cams: NDArray[np.float16]
    classes: tuple[ClassOutcome, ...]
    ignored: float


@dataclass(frozen=True)
class Info:
    name: str = "double"
    version: str = "0123456789ab"

    @property
    def classes(self) -> ClassList:
        synonyms = {"cat": ("kitty",)}
        return ClassList(
            tuple(ClassInfo(i, name, synonyms.get(name, ())) for i, name in enumerate(NAMES, 1))
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "kind": "double",
            "classes": [vars(info) for info in self.classes.classes],
            "background_threshold": 0.4,
            "min_confidence": 0.0,
            "refine": "none",
            "licence": "none",
            "metrics": [{"name": "mean_iou", "value": 0.5, "data": "none", "rule": "fixed"}],
            "nearest_nouns": {"cat": [{"noun": "sofa", "similarity": 0.5}]},
        }


class DoublePredictor:
    """Each label gets a vertical stripe of the image; the last stripe is background."""

    info = Info()
    device = "cpu"

    def options(
        self,
        *,
        refine: str | None = None,
        background_threshold: float | None = None,
        min_confidence: float | None = None,
    ) -> Options:
        return Options(refine or "none", background_threshold or 0.4, min_confidence or 0.0)

    def pseudo_mask(
        self,
        image: NDArray[np.uint8],
        labels: Sequence[str],
        options: Options,
        *,
        on_progress: Callable[[str, float], None] = lambda _stage, _fraction: None,
    ) -> Outcome:
        del options
        chosen = self.info.classes.resolve(labels)
        for each in chosen:
            _misbehave(each.name, on_progress)
        height, width = image.shape[:2]
        label_map = np.zeros((height, width), dtype=np.uint8)
        edges = np.linspace(0, width, len(chosen) + 2).astype(int)
        outcomes = []
        for each, left, right in zip(chosen, edges, edges[1:], strict=False):
            label_map[:, left:right] = each.index
            area = float((label_map == each.index).mean())
            box = (int(left), 0, int(right), height) if right > left else None
            outcomes.append(ClassOutcome(each.index, each.name, area, 0.9, 0.3, 0.1, box))
        maps = np.zeros((len(chosen), 2, 3), dtype=np.float16)
        return Outcome(
            label_map=label_map,
            confidence=np.ones((height, width), dtype=np.float16),
            scores=maps,
            cams=maps,
            classes=tuple(outcomes),
            ignored=0.0,
        )


class CrookedPredictor(DoublePredictor):
    """A model that loads and does not work: whatever it is shown, its masks have one pixel."""

    def pseudo_mask(self, image: NDArray[np.uint8], *arguments: Any, **options: Any) -> Outcome:
        return super().pseudo_mask(image[:1, :1], *arguments, **options)


def _misbehave(name: str, on_progress: Callable[[str, float], None]) -> None:
    if name == "slow":
        for step in range(20):
            on_progress("cam", step / 20)
            time.sleep(SLOW_SECONDS / 20)
    elif name == "raises":
        raise RuntimeError("secret internals\nof the model")
    elif name == "hangs":
        time.sleep(3600)
    elif name == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "huge":
        raise MemoryError


def load(settings: WorkerSettings) -> PredictorLike:
    if settings.bundle == "broken":
        raise ValueError("expected a bundle, got a broken one\nand more lines")
    return cast(
        "PredictorLike", CrookedPredictor() if settings.bundle == "crooked" else DoublePredictor()
    )


if __name__ == "__main__":
    sys.argv[0] = "service_doubles"
    make_app(load)()
