"""Handing the items of batches to the queue, a few at a time; the janitor does it.

All that it knows is in Redis, so it can be killed anywhere: an item that was queued and not yet noted is found queued.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from redis import Redis
from redis.exceptions import LockError, LockNotOwnedError, RedisError
from redis.lock import Lock
from rq.job import Job

from models.data.images import ImageError, check_image
from worker.batches.records import (
    BATCH_META,
    OPEN_SECONDS,
    TURN_KEY,
    BatchItem,
    BatchRecord,
    ItemOutcome,
    ItemStatus,
    item_result,
)
from worker.batches.store import (
    counts_of,
    end_if_done,
    find_batch,
    items_of,
    move,
    numbers_in,
    open_batches,
    outcomes_of,
    renew,
    tell_counts,
)
from worker.batches.zips import DAMAGED, Zips
from worker.queue.events import events_key
from worker.queue.failures import describe_failure
from worker.queue.jobs import (
    FINISHED_STATUSES,
    MEMORY_SHARE,
    failure_of,
    memory_in_use,
    read_status,
    request_of,
    results_of,
    should_rerun,
    status_of,
)
from worker.queue.rq import (
    RATE_SECONDS,
    JobQueue,
    canceled_by_batch,
    clear_cancel,
    fetch_job,
    fetch_jobs,
    make_job,
)
from worker.queue.schema import JobFailure
from worker.storage import BlobError, BlobMissingError, BlobStore, blob_key

# One item of a batch on its way from the zip into the queue.


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
        JobQueue(redis, request.model.name).request_cancel(job, from_batch=True)


def _submit(redis: Redis, blobs: BlobStore, new: Job, data: bytes) -> bool:
    """Queue a job unless there is the same already; return whether it was queued."""
    clear_cancel(redis, new.id)  # before the look at it: its worker may be about to leave it
    earlier = fetch_job(redis, new.id)
    if earlier is not None and not should_rerun(earlier, blobs):
        return False
    blobs.put("uploads", data)
    queue = JobQueue(redis, request_of(new).model.name)
    return queue.enqueue(new, earlier=earlier)


def _is_open(redis: Redis, batch_id: str) -> bool:
    standing = find_batch(redis, batch_id)
    return standing is not None and standing.end is None


def _failure(error: Exception) -> JobFailure:
    if isinstance(error, ImageError | BlobMissingError):
        return describe_failure(error)
    return JobFailure(
        code="image_unreadable", detail="damaged in the zip: unpacking fails", repeatable=False
    )


# What became of a batch's jobs, written down with its items before the jobs expire. Wire layer.

UNDER_WAY: Final[tuple[ItemStatus, ...]] = ("queued", "running")
_MOST = 10_000  # more than a queue holds


def collect(redis: Redis, batch_id: str) -> int:
    """Move the items that were handed to the queue on; return how many still are with it.

    Items whose jobs have gone, or whose results have, wait again.

    Raises:
        RedisError: if Redis is away.
    """
    before = _under_way(redis, batch_id)
    numbers = list(before)
    jobs = _jobs(redis, batch_id, numbers)
    states = _states(redis, jobs)
    ended = sorted({jobs[number] for number in numbers if states[number] in FINISHED_STATUSES})
    outcomes = _outcomes(redis, ended)
    left = 0
    with redis.pipeline(transaction=False) as pipeline:
        for number in numbers:
            after, outcome = outcomes.get(jobs[number], (states[number], None))
            if after in UNDER_WAY:
                left, outcome = left + 1, ItemOutcome(job=jobs[number])
            if after != before[number]:
                move(pipeline, batch_id, number, (before[number], after), outcome)
        pipeline.execute()
    return left


def jobs_under_way(redis: Redis, batch_id: str) -> dict[int, str]:
    """Return the jobs of the items that are with the queue, by number."""
    return _jobs(redis, batch_id, list(_under_way(redis, batch_id)))


def _under_way(redis: Redis, batch_id: str) -> dict[int, ItemStatus]:
    return {
        number: status
        for status in UNDER_WAY
        for number in numbers_in(redis, batch_id, status, limit=_MOST)
    }


def _jobs(redis: Redis, batch_id: str, numbers: Sequence[int]) -> dict[int, str]:
    outcomes = outcomes_of(redis, batch_id, numbers)
    return {number: outcome.job or "" for number, outcome in zip(numbers, outcomes, strict=True)}


def _states(redis: Redis, jobs: Mapping[int, str]) -> dict[int, ItemStatus]:
    """Return what the items are by their jobs' statuses."""
    found = read_status(redis, jobs.values())
    return {number: found[job_id] or "waiting" for number, job_id in jobs.items()}


def _outcomes(redis: Redis, job_ids: list[str]) -> dict[str, tuple[ItemStatus, ItemOutcome | None]]:
    """Return what became of jobs that have ended, by id."""
    jobs = fetch_jobs(redis, job_ids)
    found: dict[str, tuple[ItemStatus, ItemOutcome | None]] = {}
    results = results_of(redis, job_ids)
    taken_back = canceled_by_batch(redis, job_ids)
    for job_id, job in zip(job_ids, jobs, strict=True):
        status: ItemStatus = "waiting" if job is None else status_of(job)
        if job is None or (status == "finished" and job_id not in results):
            found[job_id] = ("waiting", None)
        elif status == "finished":
            found[job_id] = (status, ItemOutcome(job=job_id, result=item_result(results[job_id])))
        elif status == "failed":
            found[job_id] = (status, ItemOutcome(job=job_id, failure=failure_of(job)))
        elif status == "canceled":
            # With another batch, which had not seen that this one wants it too: it runs again.
            again = job_id in taken_back
            found[job_id] = ("waiting", None) if again else (status, ItemOutcome(job=job_id))
    _drop_events(redis, [each for each in jobs if each is not None])
    return found


def _drop_events(redis: Redis, jobs: Sequence[Job]) -> None:
    """Forget the events of jobs that have ended and that a batch has made: of 100,000 they take half a gigabyte."""
    keys = [events_key(job.id) for job in jobs if BATCH_META in job.meta]
    if keys:
        redis.delete(*keys)


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
        queue = JobQueue(self._redis, record.request.model.name)
        lately = queue.ended_lately(now=self._clock())
        ahead = min(record.places, max(LEAST_AHEAD, lately * AHEAD_SECONDS // RATE_SECONDS))
        return max(
            0, min(math.ceil(ahead / sharing) - under_way, record.places - queue.interactive.count)
        )

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
