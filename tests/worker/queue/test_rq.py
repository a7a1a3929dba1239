"""The queue on RQ: what a hostile or unlucky entry in Redis can do, and in which order jobs are taken."""

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError
from rq import Callback, Retry
from rq.exceptions import DequeueTimeout
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import now, utcformat
from rq.webhook import Webhook

from tests.helpers.service_fixtures import LEASE, NOTHING, Place, WorkerProcess, wait_for
from worker.queue.failures import note_abandoned
from worker.queue.rq import (
    MAINTENANCE_LOCK_SECONDS,
    STATES,
    AllowedJob,
    Attempt,
    Lease,
    LeasedQueue,
    TaskNotAllowedError,
    canceled_by_batch,
    check_task,
    fetch_job,
    make_job,
    open_redis,
    queue_stats,
)
from worker.queue.schema import (
    FAILURE_SECONDS,
    MAX_JOB_ATTEMPTS,
    QUEUE_SECONDS,
    RESULT_SECONDS,
    TASK_PATHS,
    JobFailure,
    cancel_key,
)

PSEUDO_MASK = TASK_PATHS["pseudo_mask"]


def smuggle(place: Place, path: str, *args: Any, **options: Any) -> Job:
    """Queue a job as somebody would who can write to Redis and cares for no rules."""
    job = Job.create(
        path,
        args=args,
        connection=place.redis,
        serializer=JSONSerializer,
        origin=place.queue.name,
        failure_ttl=60,
        timeout=30,
        **options,
    )
    return place.queue.enqueue_job(job)


@pytest.mark.parametrize(
    "path", ["os.system", "builtins.eval", "worker.inference.pipeline.upload", "worker.inference.worker.run", ""]
)
def test_other_paths_are_refused(place: Place, path: str) -> None:
    job = AllowedJob.create(path, args=("true",), connection=place.redis, serializer=JSONSerializer)
    with pytest.raises(TaskNotAllowedError, match="expected one of"):
        job.perform()


def test_a_method_of_a_value_is_refused(place: Place) -> None:
    job = AllowedJob("x", connection=place.redis, serializer=JSONSerializer)
    job.data = JSONSerializer.dumps(["format", "{}", ["harmless?"], {}])
    with pytest.raises(TaskNotAllowedError):
        job.perform()


@pytest.mark.parametrize("path", ["worker.tasks.pseudo_mask", "worker.tasks.segment_image"])
def test_our_tasks_are_allowed_but_never_imported(place: Place, path: str) -> None:
    job = AllowedJob.create(path, connection=place.redis, serializer=JSONSerializer)
    check_task(job)
    with pytest.raises(TaskNotAllowedError, match="expected a worker of ours"):
        job.perform()


def test_callbacks_and_webhooks_are_dropped(place: Place) -> None:
    callback = Callback("os.getcwd")
    options: dict[str, Any] = dict.fromkeys(("on_success", "on_failure", "on_stopped"), callback)
    options["webhooks"] = [Webhook("http://127.0.0.1:9/", job_status="failed")]
    redis, json = place.redis, JSONSerializer
    job = Job.create(PSEUDO_MASK, id="0" * 32, connection=redis, serializer=json, **options)
    job.save()
    fetched = fetch_job(place.redis, job.id)
    assert fetched is not None
    assert (fetched.success_callback, fetched.failure_callback) == (None, None)
    assert (fetched.stopped_callback, fetched.webhooks) == (None, [])
    job.delete()


def test_a_worker_refuses_a_smuggled_job_and_goes_on(place: Place, worker: WorkerProcess, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    job = smuggle(place, "os.system", f"touch {trace}", retry=Retry(max=2))
    place.wait_done(job)
    assert job.get_status() == "failed"
    assert job.meta["failure"]["code"] == "task_not_allowed"
    assert not trace.exists()
    assert place.wait_done(place.post("cat")).get_status() == "finished"
    assert worker.child is not None
    assert worker.child.exit_code is None
    assert place.leftovers() == NOTHING


def test_a_job_of_an_older_service_is_a_pseudo_mask(place: Place, worker: WorkerProcess) -> None:
    record = place.request("cat").model_dump(mode="json")
    options = {"refine": "none", "background_threshold": 0.4, "min_confidence": 0.0}
    old = {key: record[key] for key in ("image", "labels", "model")}
    job = place.wait_done(smuggle(place, PSEUDO_MASK, {**old, "options": options}))
    assert job.get_status() == "finished"
    assert job.return_value()["classes"][0]["name"] == "cat"


def test_pickled_jobs_are_refused(place: Place, worker: WorkerProcess) -> None:
    job = Job.create(PSEUDO_MASK, args=({},), connection=place.redis, failure_ttl=60, timeout=30)
    place.queue.enqueue_job(job)
    wait_for(lambda: job.get_status() == "failed", what="the refusal")
    assert worker.ensure().exit_code is None
    assert place.leftovers() == NOTHING


def test_a_job_is_json_and_bounded_in_every_way(place: Place) -> None:
    segmenting = make_job(place.redis, place.request(), timeout=30)
    assert JSONSerializer.loads(segmenting.data)[0] == TASK_PATHS["segment"]
    job = make_job(place.redis, place.request("cat"), timeout=30)
    assert JSONSerializer.loads(job.data)[0] == PSEUDO_MASK
    assert job.retries_left == MAX_JOB_ATTEMPTS - 1
    assert job.get_retry_interval() == 0  # anything else needs RQ's scheduler, which forks
    assert (job.ttl, job.failure_ttl, job.timeout) == (QUEUE_SECONDS, FAILURE_SECONDS, 30)
    assert job.result_ttl == RESULT_SECONDS


def test_a_maintenance_lock_does_not_outlive_its_worker_for_long(place: Place) -> None:
    assert place.queue.acquire_maintenance_lock()
    assert not place.queue.acquire_maintenance_lock()
    assert 0 < place.redis.ttl(place.queue.registry_cleaning_key) <= MAINTENANCE_LOCK_SECONDS
    place.queue.release_maintenance_lock()


@pytest.mark.parametrize("job_id", ["1" * 32, "a b", "", "x" * 10_000, "A" * 32, "0:1"])
def test_unknown_jobs_are_none(place: Place, job_id: str) -> None:
    assert fetch_job(place.redis, job_id) is None


def test_a_url_that_cannot_be_read_is_not_quoted() -> None:
    with pytest.raises(ValueError, match="percent-encoded, got one that cannot be read") as caught:
        open_redis("redis://user:sec/ret@host")
    assert "sec" not in f"{caught.value!r}{caught.value.__cause__!r}"


def test_a_redis_that_is_away_is_said_soon(tmp_path: Path) -> None:
    redis = open_redis(f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(RedisError):
        redis.ping()


def queued(place: Place, *, batch: bool = False) -> Job:
    job = make_job(place.redis, place.request("cat"), timeout=30)
    assert place.jobs.enqueue(job, batch=batch)
    return job


@pytest.fixture
def empty(place: Place, running_worker: WorkerProcess) -> Place:
    """No job and no worker."""
    running_worker.stop()
    place.redis.flushdb()
    return place


def ids(jobs: Iterable[Job]) -> list[str]:
    return [job.id for job in jobs]


def test_items_of_batches_are_taken_after_all_others(empty: Place) -> None:
    items, posted = [queued(empty, batch=True) for _ in range(2)], queued(empty)
    late = queued(empty)
    assert empty.jobs.count() == 4
    assert [empty.jobs.position(job) for job in (posted, late, *items)] == [0, 1, 2, 3]
    taken = empty.jobs.take(3)
    assert ids(taken) == ids([posted, late, items[0]])
    empty.jobs.put_back(taken)
    assert ids(empty.jobs.take(10)) == ids([posted, late, *items])
    assert empty.jobs.take(1) == []


@pytest.mark.parametrize("batch", [False, True])
def test_rqs_own_way_of_taking_a_job_loses_none(empty: Place, batch: bool) -> None:
    job = queued(empty, batch=batch)
    found, queue = LeasedQueue.dequeue_any(empty.jobs.rq_queues, 1, empty.redis)
    assert (found.id, queue.name) == (job.id, job.origin)
    assert empty.leftovers() == NOTHING | {"intermediate": [job.id.encode()]}
    with pytest.raises(DequeueTimeout):
        LeasedQueue.dequeue_any(empty.jobs.rq_queues, 1, empty.redis)


def test_an_item_that_somebody_posts_waits_with_the_others(empty: Place) -> None:
    first, item, posted = queued(empty, batch=True), queued(empty, batch=True), queued(empty)
    assert empty.jobs.clear_cancel_on_repost(item.id, max_queue=2)
    assert empty.queue.job_ids == ids([posted, item])
    moved = fetch_job(empty.redis, item.id)
    assert moved is not None
    assert (moved.origin, empty.jobs.position(moved)) == (empty.queue.name, 1)
    assert ids(empty.jobs.take(3)) == ids([posted, item, first])
    assert empty.jobs.clear_cancel_on_repost(item.id, max_queue=2)  # taken: it stays where it is
    assert empty.jobs.count() == 0
    assert not empty.jobs.clear_cancel_on_repost("0" * 32, max_queue=2)


def test_an_item_of_a_batch_is_canceled_while_it_waits(empty: Place) -> None:
    item = queued(empty, batch=True)
    empty.jobs.request_cancel(item, from_batch=True)
    assert item.get_status() == "canceled"
    assert canceled_by_batch(empty.redis, [item.id]) == {item.id}
    assert empty.leftovers() == NOTHING
    assert empty.redis.zcard(empty.jobs.batch.canceled_job_registry.key) == 1


def test_both_queues_are_counted(empty: Place) -> None:
    queued(empty, batch=True)
    job = queued(empty)
    [stats] = queue_stats([empty.jobs], moment=now() + timedelta(seconds=100))
    assert stats.jobs == dict.fromkeys(STATES, 0) | {"queued": 2}
    assert 100 <= stats.oldest < 110
    empty.jobs.take(1)
    assert empty.jobs.unfailed_job_ids() >= {job.id}
    [stats] = queue_stats([empty.jobs], moment=now())
    assert (stats.jobs["queued"], stats.jobs["taken"]) == (1, 1)
    assert queue_stats([], moment=now()) == []


def test_an_item_of_a_batch_that_waits_long_is_no_old_job(empty: Place) -> None:
    queued(empty, batch=True)
    later = now() + timedelta(hours=1)
    [stats] = queue_stats([empty.jobs], moment=later)
    assert (stats.jobs["queued"], stats.oldest) == (1, 0)
    job = queued(empty)
    empty.redis.hset(job.key, "enqueued_at", utcformat(later - timedelta(seconds=5)))
    [stats] = queue_stats([empty.jobs], moment=later)
    assert 0 < stats.oldest < 6


def expired_item_posted_again(place: Place) -> Job:
    """A job in the interactive queue, whose id is still in the other one as well."""
    item = queued(place, batch=True)
    place.redis.delete(item.key)
    place.jobs.interactive.enqueue_job(item, unique=True)
    assert [each.job_ids for each in place.jobs.rq_queues] == [[item.id], [item.id]]
    return item


def lease(place: Place, jobs: Sequence[Job]) -> list[Lease]:
    made = [place.jobs.new_lease(job, worker="w") for job in jobs]
    place.jobs.lease(made)
    return made


def test_an_id_in_both_queues_is_worked_on_once(empty: Place) -> None:
    job = expired_item_posted_again(empty)
    [taken] = empty.jobs.take(1)
    [leased] = lease(empty, empty.jobs.skip_finished([taken]))
    assert empty.jobs.ack([Attempt(leased, value={})]) == [True]
    taken_again = empty.jobs.take(1)  # from the other queue
    assert ids(taken_again) == [job.id]
    assert empty.jobs.skip_finished(taken_again) == []
    assert empty.leftovers() == NOTHING


def test_an_id_taken_from_the_other_queue_leaves_its_intermediate_list(empty: Place) -> None:
    job = expired_item_posted_again(empty)
    empty.redis.lrem(empty.queue.key, 0, job.id)
    taken = empty.jobs.take(1)
    empty.jobs.put_back(taken)
    assert empty.queue.job_ids == [job.id]
    assert empty.leftovers() == NOTHING | {"queue": [job.id.encode()]}

    empty.redis.lmove(empty.queue.key, empty.jobs.batch.intermediate_queue_key)
    [leased] = lease(empty, taken)
    assert empty.leftovers()["intermediate"] == []
    empty.jobs.drop_lease(leased)

    empty.redis.rpush(empty.jobs.batch.intermediate_queue_key, job.id)
    empty.redis.set(cancel_key(job.id), "person")
    assert empty.jobs.skip_canceled(taken) == []
    assert empty.leftovers() == NOTHING


@pytest.mark.parametrize("batch", [False, True])
def test_an_expired_job_leaves_the_other_queue_when_it_is_queued_again(empty: Place, batch: bool) -> None:
    job = queued(empty, batch=not batch)
    assert not empty.jobs.enqueue(job, batch=batch)  # it waits where it is
    assert [each.count for each in empty.jobs.rq_queues] == [int(batch), int(not batch)]
    empty.redis.delete(job.key)
    assert empty.jobs.enqueue(job, batch=batch)
    assert [each.count for each in empty.jobs.rq_queues] == [int(not batch), int(batch)]


def end_with_retry(place: Place, leased: Lease) -> None:
    failure = JobFailure(code="storage_unavailable", detail="", repeatable=True)
    assert place.jobs.ack([Attempt(leased, failure=failure, retry=True)]) == [True]


def abandon(place: Place, leased: Lease) -> None:
    registry = leased.job.started_job_registry
    place.redis.zadd(registry.key, {leased.composite_key: 1})
    place.jobs.maintain(note_abandoned)


def strand(place: Place, leased: Lease) -> None:
    place.jobs.nack(leased)
    place.jobs.take(10)
    for queue in place.jobs.rq_queues:
        place.redis.set(f"{queue.intermediate_queue_key}:first_seen:{leased.job_id}", now().timestamp() - LEASE - 1)
    place.jobs.maintain(note_abandoned)


@pytest.mark.parametrize("posted", [False, True])
@pytest.mark.parametrize(
    "queue_again", [lambda place, leased: place.jobs.nack(leased), end_with_retry, abandon, strand]
)
def test_an_item_posted_while_it_runs_is_queued_again_as_an_interactive_job(
    empty: Place, queue_again: Callable[[Place, Lease], None], posted: bool
) -> None:
    job = queued(empty, batch=True)
    [leased] = lease(empty, empty.jobs.take(1))
    if posted:
        assert empty.jobs.clear_cancel_on_repost(job.id, max_queue=2)
    queue_again(empty, leased)
    queue = empty.queue if posted else empty.jobs.batch
    assert queue.job_ids == [job.id]
    assert empty.leftovers() == NOTHING | {"queue": [job.id.encode()]}
    moved = fetch_job(empty.redis, job.id)
    assert moved is not None
    assert (moved.origin, moved.get_status(refresh=False), empty.jobs.position(moved)) == (queue.name, "queued", 0)


def test_an_item_posted_while_it_is_taken_is_put_back_as_an_interactive_job(empty: Place) -> None:
    item = queued(empty, batch=True)
    taken = empty.jobs.take(1)
    assert empty.jobs.clear_cancel_on_repost(item.id, max_queue=2)
    for _ in range(2):
        empty.jobs.put_back(taken)
        assert [each.job_ids for each in empty.jobs.rq_queues] == [[item.id], []]


def test_a_passage_through_the_intermediate_list_is_no_stay(empty: Place) -> None:
    job = queued(empty)
    seen = f"{empty.queue.intermediate_queue_key}:first_seen:{job.id}"
    empty.jobs.take(1)
    for _ in range(2):
        empty.jobs.maintain(note_abandoned)
        assert empty.leftovers() == NOTHING | {"intermediate": [job.id.encode()]}
    # Forgotten soon, so that the job's next passage is a first one again.
    assert 0 < empty.redis.ttl(seen) <= 3 * LEASE
    empty.redis.set(seen, now().timestamp() - LEASE - 1)
    empty.jobs.maintain(note_abandoned)
    assert empty.leftovers() == NOTHING | {"queue": [job.id.encode()]}
    assert not empty.redis.exists(seen)
