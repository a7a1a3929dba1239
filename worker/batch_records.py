"""What a batch is, and what became of its items. Wire layer."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Final

from worker.protocol import (
    FAILURE_SECONDS,
    JobFailure,
    JobRequest,
    JobResult,
    ModelRef,
    Options,
    Record,
)
from worker.submission import Limits

QUEUE_SHARE: Final = 2
"""Of a queue's places batches take at most one in so many; the others are for whoever posts an image."""


OPEN_SECONDS: Final = FAILURE_SECONDS
"""How long a batch is known that has not ended and that no janitor looks after."""

BATCH_META: Final = "batch"
"""Key of a job's meta: the batch that made it."""


class BatchRequest(Record):
    """Everything that decides what comes out of a batch.

    Attributes:
        archive: blob key of the zip, which holds the hash of its content.
        model: see ModelRef.
        options: of all items; ``class_thresholds`` are those of all classes.
    """

    archive: str
    model: ModelRef
    options: Options

    def batch_id(self) -> str:
        """Return the batch's id: 32 hex digits."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    def of_item(self, image: str, labels: tuple[str, ...]) -> JobRequest:
        """Return the request for an item: the one that posting its photo alone would be.

        Args:
            image: blob key of the photo.
            labels: class names in canonical order.
        """
        known = self.options.class_thresholds
        by_class = {name: known[name] for name in labels if name in known}
        options = self.options.model_copy(update={"class_thresholds": by_class})
        return JobRequest(image=image, labels=labels, options=options, model=self.model)


class BatchRecord(Record):
    """A batch as it was posted.

    Attributes:
        request: see BatchRequest.
        created_at: when.
        total: items.
        classes: names of the model's classes by their index in label maps.
        limits: of the API that took it.
    """

    request: BatchRequest
    created_at: datetime
    total: int
    classes: dict[int, str]
    limits: Limits

    @property
    def id(self) -> str:
        """The batch's id."""
        return self.request.batch_id()

    @property
    def places(self) -> int:
        """How many of the queue's places items may take, at least 1."""
        return max(1, self.limits.max_queue // QUEUE_SHARE)


class BatchItem(Record):
    """A photo of a batch.

    Attributes:
        image: its path in the zip.
        labels: class names in canonical order; none if nobody has said what it shows.
    """

    image: str
    labels: tuple[str, ...] = ()


class ItemClass(Record):
    """What came out for one class of an item; see ClassRecord."""

    index: int
    area: float
    confidence: float | None = None


class ItemResult(Record):
    """What came out for an item; kept for as long as its batch, which may be longer than the job's own result."""

    width: int
    height: int
    exif_orientation: int
    ignored: float
    classes: tuple[ItemClass, ...]
    mask: str


class ItemOutcome(Record):
    """What became of an item so far; one that waits has none.

    Attributes:
        job: id of its job; none if it failed before there was one.
        result: of one that is finished.
        failure: of one that failed.
    """

    job: str | None = None
    result: ItemResult | None = None
    failure: JobFailure | None = None


def item_result(result: JobResult) -> ItemResult:
    """Return what a batch keeps of a job's result."""
    image = result.image
    return ItemResult(
        width=image.width,
        height=image.height,
        exif_orientation=image.exif_orientation,
        ignored=result.ignored,
        classes=tuple(
            ItemClass(index=each.index, area=each.area, confidence=each.confidence)
            for each in result.classes
        ),
        mask=result.blobs.mask,
    )
