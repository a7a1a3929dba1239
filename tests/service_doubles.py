"""A predictor that misbehaves on demand, and a worker and a stack that run it.

What a job does is said by its labels: "cat" and "bowl" are segmented, "slow" takes its time,
"raises" raises, "hangs" never comes back, "kills" takes the process down, "huge" has no memory, "wide" has it alone,
"breaks" breaks the device.
Without labels the blue of the first pixel is the index of the class that it finds, 0 for none.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.classes import ClassInfo, ClassList
from models.segmentation import Asked, ClassResult, MaskOptions, Segmentation
from worker.main import make_app
from worker.runtime import OnProgress, PredictorLike
from worker.settings import WorkerSettings

NAMES = (
    *("cat", "bowl", "dining table", "slow", "raises", "hangs", "kills", "huge", "wide", "breaks"),
)
SLOW_SECONDS = 2.0


@dataclass(frozen=True)
class Info:
    name: str = "double"
    version: str = "0123456789ab"
    can_segment: bool = True

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
            "class_thresholds": {"bowl": 0.6},
            "can_segment": self.can_segment,
            "segment": {"refine": "pamr", "min_confidence": 0.1} if self.can_segment else None,
            "licence": "none",
            "metrics": [{"name": "mean_iou", "value": 0.5, "data": "none", "rule": "fixed"}],
            "nearest_nouns": {"cat": [{"noun": "sofa", "similarity": 0.5}]},
        }


class DoublePredictor:
    """Each class gets a vertical stripe of the image; the last stripe is background."""

    info = Info()
    device = "cpu"

    def options(self) -> MaskOptions:
        return MaskOptions("none", 0.0, background_threshold=0.4)

    def segment_options(self) -> MaskOptions:
        return MaskOptions("pamr", 0.1)

    def working_size(self, asked: Asked) -> tuple[int, int]:
        height, width = asked.image.shape[:2]
        return height, width

    def activate(
        self,
        batch: Sequence[Asked],
        *,
        on_progress: OnProgress = lambda _stage, _fraction: None,
    ) -> list[tuple[Asked, Sequence[ClassInfo]]]:
        if len({self.working_size(each) for each in batch}) != 1:
            raise ValueError("expected photos of one size")
        found = [(each, self._classes(each)) for each in batch]
        for _, classes in found:
            for each in classes:
                _misbehave(each.name, on_progress, len(batch))
        return found

    def finish(self, half_done: tuple[Asked, Sequence[ClassInfo]]) -> Segmentation:
        asked, classes = half_done
        return _stripes(asked.image, classes, has_cams=asked.labels is not None)

    def release_memory(self) -> None:
        """There is none."""

    def _classes(self, asked: Asked) -> Sequence[ClassInfo]:
        if asked.labels is not None:
            return self.info.classes.resolve(asked.labels)
        blue = int(asked.image[0, 0, 2])
        return tuple(each for each in self.info.classes.classes if each.index == blue)


class PlainPredictor(DoublePredictor):
    """A model without a segmenter."""

    info = Info(name="plain", can_segment=False)


class CrookedPredictor(DoublePredictor):
    """A model that loads and does not work: whatever it is shown, its masks have one pixel."""

    def finish(self, half_done: tuple[Asked, Sequence[ClassInfo]]) -> Segmentation:
        asked, classes = half_done
        return super().finish((replace(asked, image=asked.image[:1, :1]), classes))


class CrookedSegmenter(CrookedPredictor):
    """As crooked, but in its segmenter alone."""

    def finish(self, half_done: tuple[Asked, Sequence[ClassInfo]]) -> Segmentation:
        if half_done[0].labels is None:
            return super().finish(half_done)
        return DoublePredictor.finish(self, half_done)


def _stripes(
    image: NDArray[np.uint8], classes: Sequence[ClassInfo], *, has_cams: bool
) -> Segmentation:
    height, width = image.shape[:2]
    label_map = np.zeros((height, width), dtype=np.uint8)
    edges = np.linspace(0, width, len(classes) + 2).astype(int)
    results = []
    for each, left, right in zip(classes, edges, edges[1:], strict=False):
        label_map[:, left:right] = each.index
        area = float((label_map == each.index).mean())
        box = (int(left), 0, int(right), height) if right > left else None
        results.append(ClassResult(each.index, each.name, area, 0.9, 0.3, 0.1, box))
    maps = np.zeros((len(classes), 2, 3), dtype=np.float16)
    return Segmentation(
        label_map=label_map,
        confidence=np.ones((height, width), dtype=np.float16),
        scores=maps,
        cams=maps if has_cams else None,
        classes=tuple(results),
        ignored=0.0,
    )


def _misbehave(name: str, on_progress: OnProgress, together: int) -> None:
    if name == "slow":
        for step in range(20):
            on_progress("cam", step / 20)
            time.sleep(SLOW_SECONDS / 20)
    elif name == "hangs":
        time.sleep(3600)
    elif name == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name in ERRORS:
        raise ERRORS[name]
    elif name == "wide" and together > 1:
        raise MemoryError


ERRORS = {
    "raises": RuntimeError("secret internals\nof the model"),
    "huge": MemoryError(),
    "breaks": RuntimeError("CUDA error: an illegal memory access was encountered"),
}
PREDICTORS: Mapping[str, Callable[[], PredictorLike]] = {
    "double": DoublePredictor,
    "plain": PlainPredictor,
    "crooked": CrookedPredictor,
    "crooked-segmenter": CrookedSegmenter,
}


def load(settings: WorkerSettings) -> PredictorLike:
    if settings.bundle == "broken":
        raise ValueError("expected a bundle, got a broken one\nand more lines")
    return PREDICTORS[settings.bundle]()


if __name__ == "__main__":
    sys.argv[0] = "service_doubles"
    make_app(load)()
