"""Batches behind the HTTP API: submit, find, cancel, delete. All calls block: routes run them in threads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import BinaryIO, Final

from redis import Redis
from redis.exceptions import RedisError

from service.api.errors import ProblemError
from service.api.forms import BatchForm, pseudo_mask_options
from service.api.schemas import BatchDocument, ItemList, batch_document, item_document
from service.batches.archive import ArchiveFormat, pack_archive, rows_without_mask
from service.batches.report import BatchReport, make_report
from service.batches.upload import ZipLimits, open_zip, read_items, validate_entries
from worker.batches.records import (
    BATCH_META,
    BatchItem,
    BatchRecord,
    BatchRequest,
    ItemOutcome,
    ItemStatus,
)
from worker.batches.store import BatchState, BatchStore
from worker.queue.jobs import MEMORY_SHARE, Limits, memory_in_use
from worker.queue.registry import ModelInfo
from worker.queue.rq import JobQueue, fetch_jobs
from worker.queue.schema import JobFailure
from worker.storage import BlobError, BlobMissingError, BlobStore, file_key

MAX_OPEN_BATCHES: Final = 100
_STORE_ATTEMPTS: Final = 3
_NO_LABELS: Final = JobFailure(code="no_labels", detail="the zip's labels do not say what it shows", repeatable=False)


class BatchService:
    """All batches, as the API uses them.

    Args:
        redis: where batches are.
        blobs: where their zips and masks are.
        limits: of their jobs.
        zips: what a zip may hold.

    All methods raise RedisError if Redis cannot be reached and BlobError if the blob store cannot.
    """

    def __init__(self, redis: Redis, blobs: BlobStore, limits: Limits, zips: ZipLimits) -> None:
        self._redis = redis
        self._blobs = blobs
        self._limits = limits
        self._zips = zips
        self._store = BatchStore(redis)

    def submit(self, form: BatchForm, file: BinaryIO, model: ModelInfo) -> BatchState:
        """Return the batch of a zip: a new one, or the existing one of the same content, opened again.

        Args:
            form: the options.
            file: the zip, which stays open.
            model: named by the form.

        Raises:
            ProblemError: if the zip, its labels or an option is invalid, or there are too many open batches.
        """
        classes = model.class_list()
        options = pseudo_mask_options(form, model, classes.names)
        with open_zip(file, self._zips) as archive:
            items, matched = read_items(archive, validate_entries(archive, self._zips), classes)
        key = file_key("archives", file)
        record = BatchRecord(
            request=BatchRequest(archive=key, model=model.ref, options=options),
            created_at=datetime.now(UTC),
            total=len(items),
            classes={each.index: each.name for each in classes.classes},
            limits=self._limits,
            matched=matched,
        )
        self._check_room(record)
        self._store_and_open(record, file, items)
        return self.find(record.id)

    def find(self, batch_id: str) -> BatchState:
        """Return a batch.

        Raises:
            ProblemError: if it is unknown or expired.
        """
        batch = self._store.find(batch_id)
        if batch is None:
            raise ProblemError("unknown-batch", "no such batch; they are kept for a day after their end")
        return batch

    def ended(self, batch_id: str) -> BatchState:
        """Return a batch that has ended.

        Raises:
            ProblemError: if it has not, or is unknown.
        """
        batch = self.find(batch_id)
        if batch.end is None:
            raise ProblemError("batch-not-ready", "the batch has not ended")
        return batch

    def describe(self, batch: BatchState, path: str) -> BatchDocument:
        """Return a batch's document; ``path`` is the batch's own."""
        return batch_document(batch, self._store.counts(batch.record.id), path=path)

    def page(self, batch: BatchState, status: ItemStatus | None, *, after: int, limit: int) -> ItemList:
        """Return up to ``limit`` items after a number, in any state or in one."""
        batch_id, total = batch.record.id, batch.record.total
        if status is not None:
            numbers = self._store.numbers(batch_id, status, after=after, limit=limit)
            states = dict.fromkeys(numbers, status)
            more = len(numbers) == limit
        else:
            last = min(after + limit, total)
            # Items without a state are of a batch that was deleted just now.
            states = self._store.statuses(batch_id, after + 1, last) if after < last else {}
            numbers, more = sorted(states), last < total
        items = self._store.items(batch_id, numbers)
        outcomes = self._store.outcomes(batch_id, numbers)
        return ItemList(
            items=tuple(
                item_document(number, item, states[number], outcome)
                for number, item, outcome in zip(numbers, items, outcomes, strict=True)
            ),
            next=numbers[-1] if more and numbers else None,
        )

    def report(self, batch: BatchState, *, low_confidence: float, limit: int) -> BatchReport:
        """Return the report of the items that are done so far; see ``make_report``."""
        return make_report(
            self._store.rows(batch.record.id, "finished"),
            rows_without_mask(self._store, batch.record.id),
            batch.record.classes,
            low_confidence=low_confidence,
            limit=limit,
        )

    def pack(self, batch: BatchState, form: ArchiveFormat) -> BinaryIO:
        """Return the archive of a batch that has ended; see ``pack_archive``."""
        return pack_archive(self._store, self._blobs, batch, form)

    def cancel(self, record: BatchRecord) -> None:
        """Cancel the items that are not done; a job that another batch or a person waits for goes on."""
        job_ids = self._store.cancel(record.id)
        for other in self._store.open_ids() if job_ids else ():
            if other != record.id:
                job_ids -= {each.job for each in self._store.in_flight(other)}
        queue = JobQueue(self._redis, record.request.model.name)
        for job in fetch_jobs(self._redis, sorted(job_ids)):
            if job is not None and job.meta.get(BATCH_META) == record.id:
                queue.request_cancel(job, from_batch=True)

    def delete(self, record: BatchRecord) -> bool:
        """Delete a batch that has ended, and its zip unless another batch has the same; masks stay with their jobs.

        Return whether it is deleted; one that was opened again is not.
        """
        return self._delete_if(record, lambda batch: batch is None or batch.end is not None)

    def _check_room(self, record: BatchRecord) -> None:
        """Refuse a new batch if there are too many open ones, or Redis is nearly full."""
        open_ids = self._store.open_ids()
        full = len(open_ids) >= MAX_OPEN_BATCHES or memory_in_use(self._redis) >= MEMORY_SHARE
        if full and record.id not in open_ids:
            detail = f"{len(open_ids)} batches are under way, and there is no room for another"
            raise ProblemError("queue-full", detail, headers={"Retry-After": "60"})

    def _store_and_open(self, record: BatchRecord, file: BinaryIO, items: list[BatchItem]) -> None:
        """Store a batch's zip and open the batch; if that fails, nothing of it is left."""
        archive = record.request.archive
        self._store.pin_archive(record)
        try:
            for _ in range(_STORE_ATTEMPTS):
                self._blobs.put_file(archive, file)
                with self._store.archive_lock(archive):
                    if self._blobs.exists(archive):  # not deleted meanwhile with the same batch
                        self._open(record, items)
                        return
            raise BlobMissingError(f"expected {archive} to stay, got it deleted again and again")
        except BaseException:
            with suppress(RedisError, BlobError):
                self._delete_if(record, lambda batch: batch is None)
            raise

    def _open(self, record: BatchRecord, items: list[BatchItem]) -> None:
        batch = self._store.find(record.id)
        if batch is not None:
            self._store.reopen(batch)
            return
        unlabeled = {
            number: ItemOutcome(failure=_NO_LABELS) for number, item in enumerate(items, start=1) if not item.labels
        }
        self._store.create(record, items, unlabeled)

    def _delete_if(self, record: BatchRecord, condition: Callable[[BatchState | None], bool]) -> bool:
        """Delete a batch and its zip if a condition holds while no one else can open it; return whether it does."""
        archive = record.request.archive
        with self._store.archive_lock(archive):
            if not condition(self._store.find(record.id)):
                return False
            self._store.delete(record.id)
            if not self._store.pinned([archive]):
                self._blobs.delete(archive)
        return True
