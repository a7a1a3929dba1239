"""Handing the items of batches to the queue, a few at a time; the janitor does it.

All that it knows is in Redis, so it can be killed anywhere: an item that was queued and not yet noted is found queued.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from redis import Redis
from redis.exceptions import LockError, LockNotOwnedError, RedisError
from redis.lock import Lock

from worker.backlog import MEMORY_SHARE, RATE_SECONDS, jobs_done_lately, memory_in_use
from worker.batch_book import end_if_done, find_batch, open_batches, renew
from worker.batch_items import counts_of, items_of, numbers_in, tell_counts
from worker.batch_keys import TURN_KEY, ItemStatus
from worker.batch_records import OPEN_SECONDS, BatchRecord
from worker.batch_zips import Zips
from worker.blobs import BlobError, BlobStore
from worker.collector import collect
from worker.hand_out import hand_out
from worker.queues import open_queue

log = logging.getLogger(__name__)

FEED_SECONDS: Final = 0.5
"""Between two looks."""
TURN_SECONDS: Final = 5.0
"""After which another janitor takes over from one that says nothing."""
AHEAD_SECONDS: Final = 10
"""So many seconds' work is in the queue: an image that somebody posts waits no longer for the batches."""
LEAST_AHEAD: Final = 64
"""Items that are under way however slow the workers are, or nobody would know how fast they could be."""


class Feeder:
    """Feeds queues from batches, one janitor at a time.

    Args:
        redis: where batches and queues are.
        blobs: where zips are and photos go.
        clock: seconds since the epoch.
    """

    def __init__(
        self, redis: Redis, blobs: BlobStore, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._redis = redis
        self._blobs = blobs
        self._clock = clock
        self._zips = Zips(blobs)
        self._told: dict[str, dict[ItemStatus, int]] = {}

    def round(self) -> None:
        """Collect what is done and hand out what there is room for, of all batches.

        Raises:
            RedisError: if Redis is away.
            BlobError: if the store is, or is full.
        """
        turn = Lock(self._redis, TURN_KEY, timeout=TURN_SECONDS, blocking=False, thread_local=False)
        if not turn.acquire():
            return
        try:
            self._take_turn(turn)
        except LockNotOwnedError:
            log.info("another janitor has taken over")
        finally:
            with suppress(LockError):
                turn.release()

    def _take_turn(self, turn: Lock) -> None:
        found = [find_batch(self._redis, each) for each in open_batches(self._redis)]
        records = [each.record for each in found if each is not None]
        self._zips.close_others({each.request.archive for each in records})
        self._told = {each.id: self._told.get(each.id, {}) for each in records}
        sharing = Counter(each.request.model.name for each in records)
        memory = self._has_memory()
        for record in records:
            try:
                self._look_after(record, turn, sharing[record.request.model.name], memory=memory)
            except (RedisError, BlobError):
                raise
            except (
                Exception
            ):  # whatever it is about this batch, others and the janitor's other work go on
                log.exception("batch %s is left alone in this turn", record.id)

    def _look_after(self, record: BatchRecord, turn: Lock, sharing: int, *, memory: bool) -> None:
        renew(self._redis, record.id, OPEN_SECONDS)
        under_way = collect(self._redis, record.id)
        if memory:
            self._feed(record, self._room(record, under_way, sharing), turn)
        self._tell(record.id)
        end_if_done(self._redis, record.id)

    def _feed(self, record: BatchRecord, room: int, turn: Lock) -> None:
        numbers = numbers_in(self._redis, record.id, "waiting", limit=room) if room else []
        for number, item in zip(numbers, items_of(self._redis, record.id, numbers), strict=True):
            hand_out(self._redis, self._blobs, self._zips, record, number, item)
            turn.reacquire()

    def _room(self, record: BatchRecord, under_way: int, sharing: int) -> int:
        """Return how many items of a batch may be handed out.

        Batches of a model share the places in its queue, and jobs that somebody posted take theirs first.
        """
        queue = open_queue(self._redis, record.request.model.name)
        lately = jobs_done_lately(queue, now=self._clock())
        ahead = min(record.places, max(LEAST_AHEAD, lately * AHEAD_SECONDS // RATE_SECONDS))
        return max(0, min(math.ceil(ahead / sharing) - under_way, record.places - queue.count))

    def _has_memory(self) -> bool:
        """Return whether Redis has room: results stay for a day."""
        share = memory_in_use(self._redis)
        if share >= MEMORY_SHARE:
            log.warning("batches wait: Redis has %.0f %% of its memory in use", 100 * share)
        return share < MEMORY_SHARE

    def _tell(self, batch_id: str) -> None:
        counts = counts_of(self._redis, batch_id)
        if counts != self._told[batch_id]:
            tell_counts(self._redis, batch_id, counts)
            self._told[batch_id] = counts
