"""Scheduler of batches: dispatches their items to the job queue, a few at a time, and collects the results.

All state is in Redis, so a janitor that runs it can be killed anywhere: an item that is still recorded as waiting, and
whose job is queued already, finds that job.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from redis import Redis
from redis.exceptions import LockError, LockNotOwnedError, RedisError
from redis.lock import Lock
from rq.job import Job

from models.data.images import ImageError, check_image
from worker.batches.records import (
    BATCH_META,
    BatchItem,
    BatchRecord,
    ItemOutcome,
    ItemResult,
    ItemStatus,
)
from worker.batches.store import BatchStore, Move
from worker.batches.zips import DAMAGED, Zips
from worker.queue.failures import describe_failure
from worker.queue.jobs import (
    FINISHED_STATUSES,
    MEMORY_SHARE,
    failure_of,
    memory_in_use,
    read_status,
    results_of,
    status_of,
    submit,
)
from worker.queue.rq import RATE_SECONDS, JobQueue, canceled_by_batch, fetch_jobs, make_job
from worker.queue.schema import JobFailure, events_key
from worker.storage import BlobError, BlobMissingError, BlobStore, blob_key

INTERVAL_SECONDS: Final = 0.5
"""Between two runs of ``BatchScheduler.dispatch``."""
LOCK_KEY: Final = "semples:batches:turn"
_LOCK_SECONDS: Final = 5.0  # after which another janitor takes over from one that is dead
_AHEAD_SECONDS: Final = 10  # of the workers' latest rate, are queued: a new batch waits no longer for the others
_LEAST_AHEAD: Final = 64  # items, however slow the workers are
_BATCH_SECONDS: Final = 2.0  # of dispatching in one round, so that other batches and a stop need not wait

log = logging.getLogger(__name__)


class BatchScheduler:
    """Schedules all batches; of several janitors one does at a time.

    Items go to the low-priority queue of their model, so a posted image does not wait for them. The batches of a model
    share a number of items in flight, about ten seconds of work: a new batch must not wait for all of an earlier one.

    Args:
        redis: where batches and queues are.
        blobs: where zips and photos are.
    """

    def __init__(self, redis: Redis, blobs: BlobStore) -> None:
        self._redis = redis
        self._blobs = blobs
        self._store = BatchStore(redis)
        self._zips = Zips(blobs)
        self._published: dict[str, dict[ItemStatus, int]] = {}

    def dispatch(self) -> None:
        """Collect what is done and dispatch what there is room for, of all batches.

        Raises:
            RedisError: if Redis does not answer.
            BlobError: if the blob store does not, or is full.
        """
        lock = Lock(self._redis, LOCK_KEY, timeout=_LOCK_SECONDS, blocking=False, thread_local=False)
        if not lock.acquire():
            return
        try:
            self._dispatch(lock)
        except LockNotOwnedError:
            log.info("another janitor has taken over")
        finally:
            with suppress(LockError):
                lock.release()

    def _dispatch(self, lock: Lock) -> None:
        found = [self._store.find(each) for each in self._store.open_ids()]
        records = [each.record for each in found if each is not None]
        self._zips.close_others({each.request.archive for each in records})
        self._published = {each.id: self._published.get(each.id, {}) for each in records}
        by_model = Counter(each.request.model.name for each in records)
        has_memory = self._has_memory()
        ahead = {model: self._items_ahead(model) for model in by_model}
        for record in records:
            model = record.request.model.name
            share = math.ceil(min(record.limits.max_queue, ahead[model]) / by_model[model])
            try:
                self._dispatch_batch(record, share if has_memory else 0, lock)
            except (RedisError, BlobError):
                raise
            except Exception:  # a bug in one batch must not stop the others
                log.exception("batch %s is skipped in this round", record.id)

    def _items_ahead(self, model: str) -> int:
        """Return how many items of a model may be in flight if its queue has room."""
        lately = JobQueue(self._redis, model).ended_lately(now=time.time())
        return max(_LEAST_AHEAD, lately * _AHEAD_SECONDS // RATE_SECONDS)

    def _dispatch_batch(self, record: BatchRecord, limit: int, lock: Lock) -> None:
        """Collect results, then dispatch items until ``limit`` are in flight."""
        self._store.renew(record.id)
        room = max(0, limit - self.collect_results(record.id))
        pending = self._store.numbers(record.id, "waiting", limit=room) if room else []
        deadline = time.monotonic() + _BATCH_SECONDS
        for number, item in zip(pending, self._store.items(record.id, pending), strict=True):
            self.dispatch_item(record, number, item)
            lock.reacquire()
            if time.monotonic() > deadline:
                break
        counts = self._store.counts(record.id)
        if counts != self._published[record.id]:
            self._store.publish_counts(record.id, counts)
            self._published[record.id] = counts
        self._store.finish_if_done(record.id)

    def dispatch_item(self, record: BatchRecord, number: int, item: BatchItem) -> None:
        """Queue the job of an item that waits, or find the same job, or record why there can be none."""
        try:
            data = self._zips.read(record.request.archive, item.image)
            header = check_image(data, max_pixels=record.limits.max_pixels)
        except (ImageError, BlobMissingError, *DAMAGED) as error:
            failed = ItemOutcome(failure=_failure(error))
            self._store.move(record.id, [Move(number, "waiting", "failed", failed)])
            return
        request = record.request.item_request(blob_key("uploads", data), item.labels)
        timeout = record.limits.timeout(header.width * header.height)
        job = make_job(self._redis, request, timeout=timeout)
        job.meta[BATCH_META] = record.id
        queue = JobQueue(self._redis, request.model.name)
        upload = partial(self._blobs.put, "uploads", data)
        job, is_new = submit(queue, self._blobs, job, upload, max_queue=record.limits.max_queue, batch=True)
        outcome = ItemOutcome(job=job.id)
        [moved] = self._store.move(record.id, [Move(number, "waiting", "queued", outcome)])
        if is_new and not moved and not self._is_open(record.id):  # canceled meanwhile
            queue.request_cancel(job, from_batch=True)

    def collect_results(self, batch_id: str) -> int:
        """Update the states of the items in flight from their jobs; return how many are still in flight.

        Items whose jobs or results have expired wait again.
        """
        items = self._store.in_flight(batch_id)
        statuses = read_status(self._redis, (each.job for each in items))
        ended = [each for each, status in statuses.items() if status in FINISHED_STATUSES]
        ends = self._ends(sorted(ended))
        moves, in_flight = [], 0
        for number, before, job_id in items:
            after, outcome = ends.get(job_id, (statuses[job_id] or "waiting", None))
            if after in ("queued", "running"):
                in_flight, outcome = in_flight + 1, ItemOutcome(job=job_id)
            if after != before:
                moves.append(Move(number, before, after, outcome))
        self._store.move(batch_id, moves)
        return in_flight

    def _ends(self, job_ids: Sequence[str]) -> dict[str, tuple[ItemStatus, ItemOutcome | None]]:
        """Return the states and outcomes of the items of ended jobs, by job."""
        jobs = fetch_jobs(self._redis, job_ids)
        results = results_of(self._redis, job_ids)
        by_batch = canceled_by_batch(self._redis, job_ids)
        found: dict[str, tuple[ItemStatus, ItemOutcome | None]] = {}
        for job_id, job in zip(job_ids, jobs, strict=True):
            status: ItemStatus = "waiting" if job is None else status_of(job)
            outcome = None
            if status == "finished" and job_id in results:
                result = ItemResult.from_job(results[job_id])
                outcome = ItemOutcome(job=job_id, result=result)
            elif status == "failed" and job is not None:
                outcome = ItemOutcome(job=job_id, failure=failure_of(job))
            # Another batch may cancel a job before this one is recorded as sharing it: then it runs again.
            elif status == "canceled" and job_id not in by_batch:
                outcome = ItemOutcome(job=job_id)
            elif status in FINISHED_STATUSES:
                status = "waiting"
            found[job_id] = (status, outcome)
        self._delete_events([each for each in jobs if each is not None])
        return found

    def _delete_events(self, jobs: Sequence[Job]) -> None:
        """Delete the events of jobs that batches created: those of 100,000 jobs take half a gigabyte."""
        keys = [events_key(job.id) for job in jobs if BATCH_META in job.meta]
        if keys:
            self._redis.delete(*keys)

    def _is_open(self, batch_id: str) -> bool:
        state = self._store.find(batch_id)
        return state is not None and state.end is None

    def _has_memory(self) -> bool:
        """Return whether Redis has room: results stay for a day."""
        share = memory_in_use(self._redis)
        if share >= MEMORY_SHARE:
            log.warning("batches wait: Redis has %.0f %% of its memory in use", 100 * share)
        return share < MEMORY_SHARE


def _failure(error: Exception) -> JobFailure:
    if isinstance(error, ImageError | BlobMissingError):
        return describe_failure(error)
    return JobFailure(code="image_unreadable", detail="damaged in the zip: unpacking fails", repeatable=False)
