"""What a batch is, and what became of its items. Wire layer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final, Literal, cast, get_args

from redis import Redis

from models.inference.masks import MaskOptions
from worker.queue.jobs import Limits
from worker.queue.schema import FAILURE_SECONDS, JobFailure, JobRequest, JobResult, ModelRef, Record

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
    options: MaskOptions

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
        options = replace(self.options, class_thresholds=by_class)
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
    """What came out for one class of an item; see ClassResult."""

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


# Where in Redis batches are, and which blobs they keep. Wire layer.

ItemStatus = Literal["waiting", "queued", "running", "finished", "failed", "canceled"]
ITEM_STATUSES: Final[tuple[ItemStatus, ...]] = get_args(ItemStatus)
"""Waiting: not yet handed to the queue."""

KNOWN_KEY: Final = "semples:batches"
"""Sorted set of the batches that are known, by the time they were made."""

OPEN_KEY: Final = "semples:batches:open"
"""Likewise, of those that have not ended."""

TURN_KEY: Final = "semples:batches:turn"
"""There while a janitor feeds the queue."""


def batch_key(batch_id: str) -> str:
    """Return the key of a batch's hash: ``record``, ``status`` (open, finished or canceled), ``ended_at``."""
    return f"semples:batch:{batch_id}"


def items_key(batch_id: str) -> str:
    """Return the key of the list of a batch's items, number 1 first."""
    return f"{batch_key(batch_id)}:items"


def status_key(batch_id: str, status: ItemStatus) -> str:
    """Return the key of the sorted set of the numbers of the items in a state; each item is in one."""
    return f"{batch_key(batch_id)}:{status}"


def outcomes_key(batch_id: str) -> str:
    """Return the key of the hash of what became of items, by number."""
    return f"{batch_key(batch_id)}:outcomes"


def blobs_key(batch_id: str) -> str:
    """Return the key of the set of blobs that a batch keeps: its zip, and its masks."""
    return f"{batch_key(batch_id)}:blobs"


def batch_events_key(batch_id: str) -> str:
    """Return the key of the stream of a batch's counts."""
    return f"{batch_key(batch_id)}:events"


def zip_key(archive: str) -> str:
    """Return the key that is there while a batch with a zip is opened or forgotten."""
    return f"semples:batches:{archive}"


def keys_of(batch_id: str) -> list[str]:
    """Return all keys of a batch, its own first."""
    return [
        batch_key(batch_id),
        items_key(batch_id),
        outcomes_key(batch_id),
        blobs_key(batch_id),
        batch_events_key(batch_id),
        *(status_key(batch_id, status) for status in ITEM_STATUSES),
    ]


def known_batches(redis: Redis) -> list[str]:
    """Return the ids of the batches that there are, the oldest first; those that have expired are dropped."""
    ids = [each.decode() for each in cast("list[bytes]", redis.zrange(KNOWN_KEY, 0, -1))]
    with redis.pipeline(transaction=False) as pipeline:
        for each in ids:
            # Not the hash: while a batch is being made, only its blobs are there.
            pipeline.exists(blobs_key(each))
        there = dict(zip(ids, pipeline.execute(), strict=True))
    gone = [each for each in ids if not there[each]]
    if gone:
        redis.zrem(KNOWN_KEY, *gone)
        redis.zrem(OPEN_KEY, *gone)
    return [each for each in ids if there[each]]


def kept(redis: Redis, keys: Sequence[str]) -> frozenset[str]:
    """Return those of some blobs that a batch keeps.

    Raises:
        RedisError: if Redis is away.
    """
    if not keys:
        return frozenset()
    with redis.pipeline(transaction=False) as pipeline:
        for batch_id in known_batches(redis):
            pipeline.smismember(blobs_key(batch_id), list(keys))
        answers: list[list[int]] = pipeline.execute()
    return frozenset(key for key, *has in zip(keys, *answers, strict=True) if any(has))
