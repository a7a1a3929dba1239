"""Main-thread stall detector, and the self-test that proves that a model works."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from models.data.classes import with_open_labels
from models.inference.masks import LabeledImage, UnlabeledImage

if TYPE_CHECKING:
    from models.inference.predictor import Predictor

IDLE_SECONDS: Final = 60.0
"""Far more than a wait for jobs takes, on a dead connection too."""

LATE_SECONDS: Final = 2.0
"""Seconds from the deadline to the report of a stall: a job that timed out must be failed first."""

_OPEN_LABEL: Final = "small yellow bird"
"""A label that no model was trained on."""


class StallDetector:
    """When the main thread last made progress, how long its next step may take, and whether the worker is broken.

    The main thread writes; the heartbeat thread reads, since a lease alone proves no more than that a process lives.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failure = ""
        self.idle()

    def deadline(self, seconds: float) -> None:
        """Note progress; the next is due within ``seconds``."""
        # One tuple, so that the other thread never sees half of a change.
        self._mark = (self._clock(), seconds)

    def idle(self) -> None:
        """Note progress of a main thread that only waits for jobs."""
        self.deadline(IDLE_SECONDS)

    def fail(self, reason: str) -> None:
        """Report for good that this worker is of no use any more, in one line."""
        self._failure = reason

    @property
    def silent(self) -> float:
        """Seconds since the last progress."""
        return self._clock() - self._mark[0]

    def overdue(self) -> float:
        """Return the seconds since the deadline; 0 before it."""
        since, seconds = self._mark
        return max(0.0, self._clock() - since - seconds)

    @property
    def error(self) -> str:
        """What is wrong, in one line; empty if nothing is."""
        if self._failure:
            return self._failure
        if self.overdue() <= LATE_SECONDS:
            return ""
        return f"no progress for {self.silent:.0f} s, expected some within {self._mark[1]:.0f} s"


class SelfTestError(Exception):
    """A model that worked at the start does not any more."""


def self_test(predictor: Predictor) -> None:
    """Send a small gray image through all that the model can do, which also warms it up; RuntimeError if wrong."""
    image = np.full((64, 96, 3), 128, dtype=np.uint8)
    classes = predictor.info.classes
    labels = [classes.names[0]]
    if predictor.info.open_vocabulary:
        classes = with_open_labels(classes, [_OPEN_LABEL])
        labels.append(_OPEN_LABEL)
    outputs = [*predictor.forward_cam([LabeledImage(image, labels, predictor.options(), classes)])]
    if predictor.info.can_segment:
        unlabeled = UnlabeledImage(image, predictor.segment_options())
        outputs += predictor.forward_segmenter([unlabeled])
    for each in outputs:
        shape = predictor.postprocess(each).label_map.shape
        if shape != image.shape[:2]:
            raise RuntimeError(f"expected a label map of {image.shape[:2]}, got {shape}")


class PeriodicSelfTest:
    """Runs a self-test when no job has proved for ``interval`` seconds that the model works; 0 turns it off.

    ``stall`` gets the test's deadline (``patience``) and its failure. Not thread-safe, as the model is not.
    """

    def __init__(
        self,
        test: Callable[[], None],
        stall: StallDetector,
        *,
        interval: float,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._test = test
        self.stall = stall
        self._interval = interval
        self._patience = patience
        self._clock = clock
        self._proved = clock()

    def proved(self) -> None:
        """Note that the model has just worked: a job has finished."""
        self._proved = self._clock()

    def run_if_due(self) -> None:
        """Run the test if it is due; after a SelfTestError this worker should take no more jobs."""
        if not self._interval or self._clock() - self._proved < self._interval:
            return
        self.stall.deadline(self._patience)
        try:
            self._test()
        except Exception as error:
            reason = f"the self-test failed: {type(error).__name__}"
            self.stall.fail(reason)
            raise SelfTestError(reason) from error
        self.proved()
