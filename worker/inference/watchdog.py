"""Whether the main thread gets ahead: it says so itself; another thread looks, which alone can act."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np

from models.data.classes import with_open_labels
from models.inference.forward import LabeledImage, UnlabeledImage
from worker.inference.pipeline import PredictorLike

IDLE_SECONDS = 60.0
"""A wait for jobs ends after 5 s; on a connection that is dead, after three tries of 15 s each."""

LATE_SECONDS = 2.0
"""Trouble begins so much after the moment that was promised: a job that timed out must be failed yet."""


class Activity:
    """When the main thread last got ahead, how long its next step may take, and what is wrong.

    The lease alone proves that a process lives: its thread renews it while the main thread hangs.

    Args:
        clock: seconds from anywhere, never backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failure = ""
        self.rest()

    def expect(self, seconds: float) -> None:
        """Say that the main thread got ahead, and will again within so many seconds."""
        # One tuple, so that the other thread never sees half of a change.
        self._mark = (self._clock(), seconds)

    def rest(self) -> None:
        """Say that the main thread has nothing to do but to wait for jobs."""
        self.expect(IDLE_SECONDS)

    def fail(self, reason: str) -> None:
        """Say for good that this worker is of no use any more, in one line."""
        self._failure = reason

    @property
    def silent(self) -> float:
        """Seconds since the main thread last got ahead."""
        return self._clock() - self._mark[0]

    def overdue(self) -> float:
        """Return for how many seconds what was expected has not happened; 0 if all is well."""
        since, seconds = self._mark
        return max(0.0, self._clock() - since - seconds)

    @property
    def trouble(self) -> str:
        """What is wrong, in one line; empty if nothing is."""
        if self._failure:
            return self._failure
        if self.overdue() <= LATE_SECONDS:
            return ""
        return f"no progress for {self.silent:.0f} s, expected some within {self._mark[1]:.0f} s"


# The proof that a model works: a small gray image through all that it can do.

log = logging.getLogger(__name__)

# A label that no model was trained on.
_UNKNOWN = "canary in a coal mine"


class CanaryError(Exception):
    """A model that worked at the start does not any more."""


def canary(predictor: PredictorLike) -> None:
    """Send a small gray image through all that the model can do, which also warms it up.

    Raises:
        RuntimeError: if what comes out has another size.
    """
    image = np.full((64, 96, 3), 128, dtype=np.uint8)
    classes = predictor.info.classes
    labels = [classes.names[0]]
    if predictor.info.open_vocabulary:
        classes = with_open_labels(classes, [_UNKNOWN])
        labels.append(_UNKNOWN)
    labeled = LabeledImage(image, labels, predictor.options(), classes)
    half_done = [*predictor.forward_cam([labeled])]
    if predictor.info.can_segment:
        unlabeled = UnlabeledImage(image, predictor.segment_options())
        half_done += predictor.forward_segmenter([unlabeled])
    for each in half_done:
        shape = predictor.postprocess(each).label_map.shape
        if shape != image.shape[:2]:
            raise RuntimeError(f"expected a label map of {image.shape[:2]}, got {shape}")


class CanaryWatch:
    """Sends the canary again when there was no proof for a while that the model works.

    Not thread-safe: one thread alone touches the model, and so it alone calls this.

    Args:
        send: sends the canary; raises what it likes if the model does not work.
        activity: told that it is under way, and if it failed.
        interval: seconds between two proofs; 0 turns it off.
        patience: seconds that the canary may take.
        clock: seconds from anywhere, never backwards.
    """

    def __init__(
        self,
        send: Callable[[], None],
        activity: Activity,
        *,
        interval: float,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._activity = activity
        self._interval = interval
        self._patience = patience
        self._clock = clock
        self._proved = clock()

    def proved(self) -> None:
        """Note that the model has just worked: a job came out well."""
        self._proved = self._clock()

    def check(self) -> None:
        """Send the canary if it is due; call this when there is nothing else to do.

        Raises:
            CanaryError: if it fails; this worker should take no more jobs.
        """
        if not self._interval or self._clock() - self._proved < self._interval:
            return
        self._activity.expect(self._patience)
        try:
            self._send()
        except Exception as error:
            reason = f"the canary image failed: {type(error).__name__}"
            self._activity.fail(reason)
            raise CanaryError(reason) from error
        self.proved()
