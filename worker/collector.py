"""What became of a batch's jobs, written down with its items before the jobs expire. Wire layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

from redis import Redis
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from worker.batch_items import move, numbers_in, outcomes_of
from worker.batch_keys import ItemStatus
from worker.batch_records import BATCH_META, ItemOutcome, item_result
from worker.cancel import taken_back_by_batch
from worker.events import events_key
from worker.outcome import TERMINAL, failure_of, results_of, status_of, status_word
from worker.queues import AllowedJob

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
    ended = sorted({jobs[number] for number in numbers if states[number] in TERMINAL})
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
    with redis.pipeline(transaction=False) as pipeline:
        for job_id in jobs.values():
            pipeline.hget(Job.key_for(job_id), "status")
        found = cast("list[bytes | None]", pipeline.execute())
    return {
        number: "waiting" if each is None else status_word(JobStatus(each.decode()))
        for number, each in zip(jobs, found, strict=True)
    }


def _outcomes(redis: Redis, job_ids: list[str]) -> dict[str, tuple[ItemStatus, ItemOutcome | None]]:
    """Return what became of jobs that have ended, by id."""
    jobs = AllowedJob.fetch_many(job_ids, connection=redis, serializer=JSONSerializer)
    found: dict[str, tuple[ItemStatus, ItemOutcome | None]] = {}
    results = results_of(redis, job_ids)
    taken_back = taken_back_by_batch(redis, job_ids)
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
