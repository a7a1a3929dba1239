"""RQ as we use it: what a hostile or unlucky entry in Redis can and cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError
from rq import Callback, Retry
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.webhook import Webhook

from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, wait_for
from worker.queue.rq import (
    MAINTENANCE_LOCK_SECONDS,
    AllowedJob,
    TaskNotAllowedError,
    fetch_job,
    make_job,
    open_redis,
)
from worker.queue.schema import (
    FAILURE_SECONDS,
    MAX_ATTEMPTS,
    PSEUDO_MASK,
    QUEUE_SECONDS,
    RESULT_SECONDS,
    SEGMENT,
)


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
    "path",
    [
        "os.system",
        "builtins.eval",
        "worker.inference.pipeline.installed",
        "worker.inference.pipeline.run",
        "",
    ],
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


@pytest.mark.parametrize(
    ("path", "name"), [(PSEUDO_MASK, "pseudo_mask"), (SEGMENT, "segment_image")]
)
def test_our_tasks_are_allowed(place: Place, path: str, name: str) -> None:
    job = AllowedJob.create(path, connection=place.redis, serializer=JSONSerializer)
    assert job.func.__name__ == name


def test_callbacks_and_webhooks_are_dropped(place: Place) -> None:
    callback = Callback("os.getcwd")
    job = Job.create(
        PSEUDO_MASK,
        id="0" * 32,
        connection=place.redis,
        serializer=JSONSerializer,
        on_success=callback,
        on_failure=callback,
        on_stopped=callback,
        webhooks=[Webhook("http://127.0.0.1:9/", job_status="failed")],
    )
    job.save()
    fetched = fetch_job(place.redis, job.id)
    assert fetched is not None
    assert fetched.success_callback is None
    assert fetched.failure_callback is None
    assert fetched.stopped_callback is None
    assert fetched.webhooks == []
    job.delete()


def test_a_worker_refuses_a_smuggled_job_and_goes_on(
    place: Place, worker: WorkerProcess, tmp_path: Path
) -> None:
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
    del worker
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
    assert JSONSerializer.loads(segmenting.data)[0] == SEGMENT
    job = make_job(place.redis, place.request("cat"), timeout=30)
    assert JSONSerializer.loads(job.data)[0] == PSEUDO_MASK
    assert job.retries_left == MAX_ATTEMPTS - 1
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


def test_a_redis_that_is_away_is_said_soon(tmp_path: Path) -> None:
    redis = open_redis(f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(RedisError):
        redis.ping()
