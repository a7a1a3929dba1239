"""A predictor that misbehaves on demand, and a worker and a stack that run it.

What a job does is said by its labels: "cat" and "bowl" are segmented, "slow" takes its time,
"raises" raises, "hangs" never comes back, "kills" takes the process down, "huge" has no memory, "wide" has it alone,
"breaks" breaks the device.
Without labels the blue of the first pixel is the index of the class that it finds, 0 for none.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import typer

from models.data.classes import ClassInfo, ClassList
from models.inference.masks import (
    LabeledImage,
    MaskOptions,
    OnProgress,
    Segmentation,
    SoftMaps,
    UnlabeledImage,
    class_result,
    decide,
)
from worker.__main__ import run_worker
from worker.settings import WorkerSettings

NAMES = (*("cat", "bowl", "dining table", "slow", "raises", "hangs", "kills", "huge", "wide", "breaks", "wedged"),)
SLOW_SECONDS = 2.0


@dataclass(frozen=True)
class Info:
    name: str = "double"
    version: str = "0123456789ab"
    can_segment: bool = True
    open_vocabulary: bool = True

    @property
    def classes(self) -> ClassList:
        synonyms = {"cat": ("kitty",)}
        return ClassList(tuple(ClassInfo(i, name, synonyms.get(name, ())) for i, name in enumerate(NAMES, 1)))

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
            "open_vocabulary": self.open_vocabulary,
            "segment": {"refine": "pamr", "min_confidence": 0.1} if self.can_segment else None,
            "licence": "none",
            "metrics": [{"name": "mean_iou", "value": 0.5, "data": "none", "rule": "fixed"}],
            "nearest_nouns": {"cat": [{"noun": "sofa", "similarity": 0.5}]},
        }


@dataclass(frozen=True)
class HalfDone:
    photo: LabeledImage | UnlabeledImage
    classes: Sequence[ClassInfo]


class DoublePredictor:
    """Each class gets a vertical stripe of the image; the last stripe is background."""

    info = Info()
    device = "cpu"

    def options(self) -> MaskOptions:
        return MaskOptions("none", 0.0, background_threshold=0.4)

    def segment_options(self) -> MaskOptions:
        return MaskOptions("pamr", 0.1)

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    segment_size = working_size

    def forward_cam(
        self, batch: Sequence[LabeledImage], *, on_progress: OnProgress = lambda _stage, _fraction: None
    ) -> list[HalfDone]:
        found = [(each.classes or self.info.classes).resolve(each.labels) for each in batch]
        return self._activate(batch, found, on_progress)

    def forward_segmenter(
        self, batch: Sequence[UnlabeledImage], *, on_progress: OnProgress = lambda _stage, _fraction: None
    ) -> list[HalfDone]:
        blues = [int(each.image[0, 0, 2]) for each in batch]
        classes = self.info.classes.classes
        found = [tuple(each for each in classes if each.index == blue) for blue in blues]
        return self._activate(batch, found, on_progress)

    def _activate(
        self,
        batch: Sequence[LabeledImage | UnlabeledImage],
        found: Sequence[Sequence[ClassInfo]],
        on_progress: OnProgress,
    ) -> list[HalfDone]:
        if len({each.image.shape for each in batch}) != 1:
            raise ValueError("expected photos of one size")
        for classes in found:
            for each in classes:
                _misbehave(each.name, on_progress, len(batch))
        return [HalfDone(*each) for each in zip(batch, found, strict=True)]

    def postprocess(self, half_done: HalfDone) -> Segmentation:
        return _stripes(half_done.photo, half_done.classes, self.info.classes)

    def release_memory(self) -> None:
        """There is none."""

    def device_memory(self) -> int | None:
        return None


class PlainPredictor(DoublePredictor):
    """A model without a segmenter and an open vocabulary."""

    info = Info(name="plain", can_segment=False, open_vocabulary=False)


class CrookedPredictor(DoublePredictor):
    """A model that loads and does not work: whatever it is shown, its masks have one pixel."""

    def postprocess(self, half_done: HalfDone) -> Segmentation:
        photo = replace(half_done.photo, image=half_done.photo.image[:1, :1])
        return super().postprocess(replace(half_done, photo=photo))


class CrookedSegmenter(CrookedPredictor):
    """As crooked, but in its segmenter alone."""

    def postprocess(self, half_done: HalfDone) -> Segmentation:
        if isinstance(half_done.photo, UnlabeledImage):
            return super().postprocess(half_done)
        return DoublePredictor.postprocess(self, half_done)


def _stripes(photo: LabeledImage | UnlabeledImage, classes: Sequence[ClassInfo], known: ClassList) -> Segmentation:
    """Scores fall from 1 in the top row to 0.7 in the bottom row of each class's stripe; the last stripe has none."""
    height, width = photo.image.shape[:2]
    scores = np.zeros((len(classes), height, width), dtype=np.float16)
    edges = np.linspace(0, width, len(classes) + 2).astype(int)
    for number in range(len(classes)):
        left, right = edges[number : number + 2]
        scores[number, :, left:right] = np.linspace(1, 0.7, height)[:, None]
    indices = np.array([each.index for each in classes], dtype=np.int64)
    names = tuple(each.name for each in classes)
    decision = decide(SoftMaps(scores, indices, names, (height, width)), photo.options)
    return Segmentation(
        label_map=decision.label_map,
        confidence=decision.confidence,
        scores=scores,
        cams=scores[:, ::2, ::2] if isinstance(photo, LabeledImage) else None,
        classes=tuple(
            class_result(each.index, each.name, decision, zero_shot=not known.knows(each.name)) for each in classes
        ),
        ignored=decision.ignored,
    )


class MoodyPredictor(DoublePredictor):
    """A model that works until a file says how it misbehaves from then on."""

    info = Info(name="moody", version="ba9876543210")

    def __init__(self, mood: Path) -> None:
        self._mood = mood

    def forward_cam(self, batch: Sequence[LabeledImage], **options: Any) -> list[HalfDone]:
        if self._mood.exists():
            _misbehave(self._mood.read_text(), lambda _stage, _fraction: None, len(batch))
        return super().forward_cam(batch, **options)


def _misbehave(name: str, on_progress: OnProgress, together: int) -> None:
    if name == "slow":
        for step in range(20):
            on_progress("cam", step / 20)
            time.sleep(SLOW_SECONDS / 20)
    elif name == "hangs":
        time.sleep(3600)
    elif name == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "wedged":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM})
        time.sleep(3600)
    elif name in ERRORS:
        raise ERRORS[name]
    elif name == "wide" and together > 1:
        raise MemoryError


ERRORS = {
    "raises": RuntimeError("secret internals\nof the model"),
    "huge": MemoryError(),
    "breaks": RuntimeError("CUDA error: an illegal memory access was encountered"),
}
PREDICTORS: Mapping[str, Callable[[], Any]] = {
    "double": DoublePredictor,
    "plain": PlainPredictor,
    "crooked": CrookedPredictor,
    "crooked-segmenter": CrookedSegmenter,
}


def load(settings: WorkerSettings) -> Any:
    if settings.bundle == "broken":
        raise ValueError("expected a bundle, got a broken one\nand more lines")
    if settings.bundle == "moody":
        return MoodyPredictor(Path(settings.blobs).with_name("mood"))
    return PREDICTORS[settings.bundle]()


if __name__ == "__main__":
    sys.argv[0] = "service_doubles"
    try:
        run_worker(sys.argv[1:], load=load)
    except typer.Exit as ended:
        sys.exit(ended.exit_code)
