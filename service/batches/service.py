"""Batches as the API knows them: post, find, cancel, forget. Calls block, so routes run them in threads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import BinaryIO, Final

from redis import Redis
from redis.exceptions import RedisError

from service.api.errors import ProblemError
from service.api.forms import BatchForm, pseudo_mask_options
from service.api.schemas import BatchDocument, ItemList, batch_document, item_document
from service.batches.archive import ArchiveFormat, Packer, without_mask
from service.batches.report import BatchReport, make_report
from service.batches.upload import ZipLimits, look_through, open_zip, read_items
from worker.batches.records import (
    BATCH_META,
    BatchItem,
    BatchRecord,
    BatchRequest,
    ItemOutcome,
    ItemStatus,
    kept,
)
from worker.batches.scheduler import jobs_under_way
from worker.batches.store import (
    Standing,
    cancel_items,
    counts_of,
    each_in,
    find_batch,
    forget_batch,
    items_of,
    keep_archive,
    make_batch,
    numbers_in,
    open_batches,
    outcomes_of,
    reopen,
    states_of,
    tell_counts,
    turn_with,
)
from worker.queue.jobs import MEMORY_SHARE, Limits, memory_in_use
from worker.queue.registry import ModelInfo
from worker.queue.rq import JobQueue, fetch_job
from worker.queue.schema import JobFailure
from worker.storage import BlobError, BlobMissingError, BlobStore, file_key

# A batch and its zip: opened only on one that is there, and forgotten together.

_TRIES: Final = 3


def open_with_zip(
    redis: Redis, blobs: BlobStore, record: BatchRecord, file: BinaryIO, open_it: Callable[[], None]
) -> None:
    """Store a batch's zip and open the batch; if that fails, nothing of it is left.

    Args:
        redis: where batches are.
        blobs: where zips are.
        record: of the batch.
        file: the zip.
        open_it: makes the batch, or has the one go on that there is.

    Raises:
        RedisError: if Redis is away.
        BlobError: if the store is, or is full.
    """
    archive = record.request.archive
    keep_archive(redis, record)
    try:
        for _ in range(_TRIES):
            blobs.put_file(archive, file)
            with turn_with(redis, archive):
                if blobs.exists(archive):  # else a batch with the same was forgotten meanwhile
                    open_it()
                    return
        raise BlobMissingError(f"expected {archive} to stay, got it deleted again and again")
    except BaseException:
        with suppress(RedisError, BlobError):
            forget_with_zip(redis, blobs, record, lambda standing: standing is None)
        raise


def forget_with_zip(
    redis: Redis, blobs: BlobStore, record: BatchRecord, may: Callable[[Standing | None], bool]
) -> bool:
    """Forget a batch and its zip, unless another one has the same; return whether it is forgotten.

    Args:
        redis: where batches are.
        blobs: where zips are.
        record: of the batch.
        may: says of the batch, as it is when nobody else changes that, whether it may be forgotten.

    Raises:
        RedisError: if Redis is away.
        BlobError: if the store is.
    """
    archive = record.request.archive
    with turn_with(redis, archive):
        if not may(find_batch(redis, record.id)):
            return False
        forget_batch(redis, record.id)
        if not kept(redis, [archive]):
            blobs.delete(archive)
    return True


NO_LABELS = JobFailure(
    code="no_labels", detail="the zip's labels do not say what it shows", repeatable=False
)

MOST_UNDER_WAY: Final = 100


class Batches:
    """The batches that there are.

    Args:
        redis: where they are.
        blobs: where their zips and masks are.
        limits: of their jobs.
        zips: what a zip may hold.

    All methods raise RedisError if Redis is away and BlobError if the store is.
    """

    def __init__(self, redis: Redis, blobs: BlobStore, limits: Limits, zips: ZipLimits) -> None:
        self._redis = redis
        self._blobs = blobs
        self._limits = limits
        self._zips = zips

    def submit(self, form: BatchForm, file: BinaryIO, model: ModelInfo) -> Standing:
        """Return the batch of a zip: a new one, or the one that there is already, which goes on.

        Args:
            form: the choices.
            file: the zip, which stays open.
            model: that the form names.

        Raises:
            ProblemError: if the zip, its labels or an option will not do.
        """
        classes = model.class_list()
        options = pseudo_mask_options(form, model, classes.names)
        with open_zip(file, self._zips) as archive:
            contents = look_through(archive, self._zips)
            items = read_items(archive, contents, classes)
        key = file_key("archives", file)
        request = BatchRequest(archive=key, model=model.ref, options=options)
        record = BatchRecord(
            request=request,
            created_at=datetime.now(UTC),
            total=len(items),
            classes={each.index: each.name for each in classes.classes},
            limits=self._limits,
        )
        self._check_room(record)
        opening = partial(self._open, record, items)
        open_with_zip(self._redis, self._blobs, record, file, opening)
        return self.find(record.id)

    def _check_room(self, record: BatchRecord) -> None:
        """Take no more batches than can be looked after; one that is under way takes no more room.

        Raises:
            ProblemError: if this is one too many.
        """
        under_way = open_batches(self._redis)
        full = len(under_way) >= MOST_UNDER_WAY or memory_in_use(self._redis) >= MEMORY_SHARE
        if full and record.id not in under_way:
            detail = f"{len(under_way)} batches are under way, and there is no room for another"
            raise ProblemError("queue-full", detail, headers={"Retry-After": "60"})

    def find(self, batch_id: str) -> Standing:
        """Return a batch.

        Raises:
            ProblemError: if it is unknown or expired.
        """
        standing = find_batch(self._redis, batch_id)
        if standing is None:
            raise ProblemError(
                "unknown-batch", "no such batch; they are kept for a day after their end"
            )
        return standing

    def ended(self, batch_id: str) -> Standing:
        """Return a batch that has ended.

        Raises:
            ProblemError: if it has not, or is unknown.
        """
        standing = self.find(batch_id)
        if standing.end is None:
            raise ProblemError("batch-not-ready", "the batch has not ended")
        return standing

    def describe(self, standing: Standing, path: str) -> BatchDocument:
        """Return a batch's document.

        Args:
            standing: the batch.
            path: its own.
        """
        counts = counts_of(self._redis, standing.record.id)
        return batch_document(standing, counts, path=path)

    def page(
        self, standing: Standing, status: ItemStatus | None, *, after: int, limit: int
    ) -> ItemList:
        """Return some of a batch's photos.

        Args:
            standing: the batch.
            status: only photos in this state; None for all.
            after: number that the page begins after.
            limit: most photos in it.
        """
        batch_id, total = standing.record.id, standing.record.total
        if status is not None:
            numbers = numbers_in(self._redis, batch_id, status, after=after, limit=limit)
            states = dict.fromkeys(numbers, status)
            more = len(numbers) == limit
        else:
            last = min(after + limit, total)
            # An item that was made and is in no state is of a batch that was forgotten just now.
            states = states_of(self._redis, batch_id, after + 1, last) if after < last else {}
            numbers, more = sorted(states), last < total
        items = items_of(self._redis, batch_id, numbers)
        outcomes = outcomes_of(self._redis, batch_id, numbers)
        return ItemList(
            items=tuple(
                item_document(number, item, states[number], outcome)
                for number, item, outcome in zip(numbers, items, outcomes, strict=True)
            ),
            next=numbers[-1] if more and numbers else None,
        )

    def report(self, standing: Standing, *, low_confidence: float, limit: int) -> BatchReport:
        """Add up what came out so far; see ``make_report``."""
        batch_id = standing.record.id
        return make_report(
            each_in(self._redis, batch_id, "finished"),
            without_mask(self._redis, batch_id),
            standing.record.classes,
            low_confidence=low_confidence,
            limit=limit,
        )

    def pack(self, standing: Standing, form: ArchiveFormat) -> BinaryIO:
        """Make an archive; see ``Packer``."""
        return Packer(self._redis, self._blobs).pack(standing, form)

    def cancel(self, record: BatchRecord) -> None:
        """Cancel what is not done of a batch; jobs that another batch has under way go on."""
        taken = cancel_items(self._redis, record.id)
        jobs = {each.job for each in outcomes_of(self._redis, record.id, taken) if each.job}
        others = [each for each in open_batches(self._redis) if each != record.id]
        for other in others if jobs else ():
            jobs -= set(jobs_under_way(self._redis, other).values())
        queue = JobQueue(self._redis, record.request.model.name)
        for job_id in jobs:
            job = fetch_job(self._redis, job_id)
            # One that somebody had posted before is theirs, too.
            if job is not None and job.meta.get(BATCH_META) == record.id:
                queue.request_cancel(job, from_batch=True)
        tell_counts(self._redis, record.id, counts_of(self._redis, record.id))

    def forget(self, record: BatchRecord) -> bool:
        """Forget a batch that has ended, and its zip, unless another one has the same; masks stay while their jobs do.

        Returns whether it is gone; one that was posted again goes on.
        """
        return forget_with_zip(self._redis, self._blobs, record, _has_ended)

    def _open(self, record: BatchRecord, items: list[BatchItem]) -> None:
        unlabeled = {
            number: ItemOutcome(failure=NO_LABELS)
            for number, item in enumerate(items, start=1)
            if not item.labels
        }
        standing = find_batch(self._redis, record.id)
        if standing is not None:
            reopen(self._redis, standing)
        elif make_batch(self._redis, record, items, unlabeled):
            tell_counts(self._redis, record.id, counts_of(self._redis, record.id))


def _has_ended(standing: Standing | None) -> bool:
    return standing is None or standing.end is not None
