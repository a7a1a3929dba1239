"""One item of a batch on its way from the zip into the queue."""

from __future__ import annotations

from redis import Redis
from rq.job import Job

from models.data.images import ImageError, check_image
from worker.batch_book import find_batch
from worker.batch_items import move
from worker.batch_records import BATCH_META, BatchItem, BatchRecord, ItemOutcome
from worker.batch_zips import DAMAGED, Zips
from worker.blob_keys import blob_key
from worker.blobs import BlobMissingError, BlobStore
from worker.cancel import take_back, withdraw_cancel
from worker.failures import describe
from worker.outcome import request_of
from worker.protocol import JobFailure
from worker.queues import fetch_job, make_job, open_queue
from worker.submission import enqueue, runs_again


def hand_out(
    redis: Redis, blobs: BlobStore, zips: Zips, record: BatchRecord, number: int, item: BatchItem
) -> None:
    """Queue an item's job, or find the one that there is, or say why there can be none.

    Args:
        redis: where all that is.
        blobs: where its photo goes.
        zips: where that comes from.
        record: of the batch.
        number: of the item, which waits.
        item: see BatchItem.

    Raises:
        RedisError: if Redis is away.
        BlobError: if the store is, or is full.
    """
    try:
        data = zips.read(record.request.archive, item.image)
        header = check_image(data, max_pixels=record.limits.max_pixels)
    except (ImageError, BlobMissingError, *DAMAGED) as error:
        failed = ItemOutcome(failure=_failure(error))
        move(redis, record.id, number, ("waiting", "failed"), failed)
        return
    request = record.request.of_item(blob_key("uploads", data), item.labels)
    timeout = record.limits.timeout(header.width * header.height)
    new = make_job(redis, request, timeout=timeout)
    new.meta[BATCH_META] = record.id
    is_new = _submit(redis, blobs, new, data)
    outcome = ItemOutcome(job=request.job_id())
    moved = move(redis, record.id, number, ("waiting", "queued"), outcome)
    job = fetch_job(redis, request.job_id()) if is_new and not moved else None
    if job is not None and not _is_open(redis, record.id):
        take_back(open_queue(redis, request.model.name), job, from_batch=True)


def _submit(redis: Redis, blobs: BlobStore, new: Job, data: bytes) -> bool:
    """Queue a job unless there is the same already; return whether it was queued."""
    withdraw_cancel(redis, new.id)  # before the look at it: its worker may be about to leave it
    earlier = fetch_job(redis, new.id)
    if earlier is not None and not runs_again(earlier, blobs):
        return False
    blobs.put("uploads", data)
    queue = open_queue(redis, request_of(new).model.name)
    return enqueue(queue, new, earlier=earlier)


def _is_open(redis: Redis, batch_id: str) -> bool:
    standing = find_batch(redis, batch_id)
    return standing is not None and standing.end is None


def _failure(error: Exception) -> JobFailure:
    if isinstance(error, ImageError | BlobMissingError):
        return describe(error)
    return JobFailure(
        code="image_unreadable", detail="damaged in the zip: unpacking fails", repeatable=False
    )
