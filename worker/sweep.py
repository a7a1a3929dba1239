"""Deleting blobs whose time is over, by one janitor for all."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from functools import partial

from redis import Redis

from worker.batch_keys import kept
from worker.blobs import BlobStore

log = logging.getLogger(__name__)

SWEEP_KEY = "semples:sweep"
"""There while no sweep is due: a large store takes long to walk, and S3 charges for it."""


def sweep_for_all(
    blobs: BlobStore, redis: Redis, *, now: datetime, lifetime: timedelta, turn: float
) -> None:
    """Delete expired blobs that no batch keeps, unless another janitor has just done it.

    Args:
        blobs: the store.
        redis: where turns are taken.
        now: this moment.
        lifetime: of a blob after it was last written.
        turn: seconds between one sweep and the next.

    Raises:
        RedisError: if Redis is away.
        BlobError: if the store is.
    """
    # A little less, so that the same janitor's next turn is one, should it be the only one.
    if not redis.set(SWEEP_KEY, 1, px=max(1, int(900 * turn)), nx=True):
        return
    deleted = blobs.sweep(now=now, lifetime=lifetime, spare=partial(kept, redis))
    if deleted:
        log.info("deleted %d blobs whose time was over", deleted)
