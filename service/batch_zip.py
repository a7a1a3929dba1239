"""A batch and its zip: opened only on one that is there, and forgotten together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, Final

from redis import Redis
from redis.exceptions import RedisError

from worker.batches.records import BatchRecord, kept
from worker.batches.store import Standing, find_batch, forget_batch, keep_archive, turn_with
from worker.storage import BlobError, BlobMissingError, BlobStore

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
