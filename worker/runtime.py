"""What a task needs and no job can carry: the model in memory and the blob store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from models.data.classes import ClassList
from models.data.images import MAX_PIXELS
from models.inference.forward import Labeled, Unlabeled
from models.inference.masks import MaskOptions, OnProgress, Segmentation
from worker.blobs import BlobStore
from worker.meters import Meters
from worker.presence import ModelInfo

HalfDone = Any
"""What came out of the networks for one photo: the predictor's own business."""


class Described(Protocol):
    """A bundle's description."""

    @property
    def classes(self) -> ClassList:
        """The classes that can be asked for."""
        ...

    @property
    def can_segment(self) -> bool:
        """Whether it holds a segmenter."""
        ...

    @property
    def open_vocabulary(self) -> bool:
        """Whether labels may be others than its classes."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return it in JSON's types."""
        ...


class PredictorLike(Protocol):
    """What the worker needs of ``models.inference.predictor.Predictor``, so that torch stays out of here."""

    @property
    def device(self) -> object:
        """Where the work is done; its text is a device's name."""
        ...

    @property
    def info(self) -> Described:
        """What the model says of itself."""
        ...

    def options(self) -> MaskOptions:
        """Return the model's own options for pseudo masks."""
        ...

    def segment_options(self) -> MaskOptions:
        """Return the model's own options for segmenting."""
        ...

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (H, W) at which a labeled photo goes through the networks; only equal ones do so together."""
        ...

    def segment_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the same for a photo without labels."""
        ...

    def activate(
        self, batch: Sequence[Labeled], *, on_progress: OnProgress = ...
    ) -> Sequence[HalfDone]:
        """Send photos of one working size through the networks; one thread alone does this."""
        ...

    def activate_segments(
        self, batch: Sequence[Unlabeled], *, on_progress: OnProgress = ...
    ) -> Sequence[HalfDone]:
        """Do the same with photos that nothing is said of."""
        ...

    def finish(self, half_done: HalfDone) -> Segmentation:
        """Make a segmentation of what came out of the networks; may be done in any thread."""
        ...

    def release_memory(self) -> None:
        """Give back memory of the device that is held and not used."""
        ...

    def device_memory(self) -> int | None:
        """Return the bytes of the device's memory that are held, None if it has none of its own."""
        ...


@dataclass(frozen=True)
class Runtime:
    """One process's model, store and name; made once, before the first job.

    Attributes:
        predictor: warm.
        model: what the predictor says of itself.
        blobs: shared with the service.
        worker: this worker's name.
        max_pixels: largest image.
        store_patience: seconds for which a blob store that is away is asked again.
        failures: why jobs failed, by job, known before RQ calls the task that raises it.
        meters: count what is done.
    """

    predictor: PredictorLike
    model: ModelInfo
    blobs: BlobStore
    worker: str
    max_pixels: int = MAX_PIXELS
    store_patience: float = 30.0
    failures: dict[str, BaseException] = field(default_factory=dict)
    meters: Meters = field(default_factory=Meters)


class _Holder:
    """Holds the one runtime of this process: RQ calls a task by its import path, with JSON alone."""

    runtime: Runtime | None = None


def install(runtime: Runtime | None) -> None:
    """Make a runtime the one that this process's tasks use; None: there is none any more."""
    _Holder.runtime = runtime


def installed() -> Runtime:
    """Return the process's runtime.

    Raises:
        RuntimeError: if there is none: the task was not run by our worker.
    """
    if _Holder.runtime is None:
        raise RuntimeError("expected a worker started by worker.main, got no installed runtime")
    return _Holder.runtime
