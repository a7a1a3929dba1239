"""Records of batches in Redis: the request, its items, and their outcomes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import datetime
from typing import Final, Literal, Self, get_args

from pydantic import Field

from models.data.photos import MatchRule
from models.inference.masks import MaskOptions
from worker.queue.jobs import Limits
from worker.queue.schema import JobFailure, JobRequest, JobResult, ModelRef, Record

ItemStatus = Literal["waiting", "queued", "running", "finished", "failed", "canceled"]
ITEM_STATUSES: Final[tuple[ItemStatus, ...]] = get_args(ItemStatus)
"""An item that waits has not been dispatched to the queue."""

BATCH_META: Final = "batch"
"""Key of a job's meta: id of the batch that created it."""


class BatchRequest(Record):
    """Everything that decides a batch's results.

    Attributes:
        archive: blob key of the zip, which holds the hash of its content.
        model: see ModelRef.
        options: of all items; ``class_thresholds`` are those of all classes.
    """

    archive: str
    model: ModelRef
    options: MaskOptions

    def batch_id(self) -> str:
        """Return the batch's id: 32 hex digits."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    def item_request(self, image: str, labels: tuple[str, ...]) -> JobRequest:
        """Return an item's request: the same as if its photo was posted alone.

        Args:
            image: blob key of the photo.
            labels: class names in canonical order.
        """
        known = self.options.class_thresholds
        by_class = {name: known[name] for name in labels if name in known}
        options = replace(self.options, class_thresholds=by_class)
        return JobRequest(image=image, labels=labels, options=options, model=self.model)


class BatchRecord(Record):
    """A batch as it was posted.

    Attributes:
        request: see BatchRequest.
        created_at: time of the post.
        total: number of items.
        classes: names of the model's classes by their index in label maps.
        limits: of the API that accepted it.
        matched: number of rows of labels by the rule that found their photo.
    """

    request: BatchRequest
    created_at: datetime
    total: int
    classes: dict[int, str]
    limits: Limits
    matched: dict[MatchRule, int] = Field(default_factory=dict)

    @property
    def id(self) -> str:
        """The batch's id."""
        return self.request.batch_id()


class BatchItem(Record):
    """A photo of a batch: its path in the zip, and its class names in canonical order, none if it is unlabeled."""

    image: str
    labels: tuple[str, ...] = ()


class _ItemClass(Record):
    """One class of an item's result; see ClassResult."""

    index: int
    area: float
    confidence: float | None = None


class ItemResult(Record):
    """The part of a job's result that a batch stores; it may outlive the job's own."""

    width: int
    height: int
    exif_orientation: int
    ignored: float
    classes: tuple[_ItemClass, ...]
    mask: str

    @classmethod
    def from_job(cls, result: JobResult) -> Self:
        """Return the part of a job's result that a batch stores."""
        image = result.image
        return cls(
            width=image.width,
            height=image.height,
            exif_orientation=image.exif_orientation,
            ignored=result.ignored,
            classes=tuple(
                _ItemClass(index=each.index, area=each.area, confidence=each.confidence) for each in result.classes
            ),
            mask=result.blobs.mask,
        )


class ItemOutcome(Record):
    """What is known of an item that does not wait.

    Attributes:
        job: id of its job; None if it failed before there was one.
        result: if it is finished.
        failure: if it failed.
    """

    job: str | None = None
    result: ItemResult | None = None
    failure: JobFailure | None = None
