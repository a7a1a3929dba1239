"""How fast workers get through jobs that do next to nothing: ours, and a plain RQ SimpleWorker, on one Valkey.

All workers run all the time and wait at their queues. In a turn one queue is filled in one transaction, and the time is
taken from then until RQ's registries hold as many more finished jobs. What a job includes:

* ours: the real worker process with a predictor that answers at once: RQ's bookkeeping, leases, the upload read and
  decoded (32 × 24 pixels), mask and scores encoded and stored;
* the SimpleWorker with our task: the same task by the same import path, hence the same work, one job after the other;
* the SimpleWorker with nothing: a function that returns at once;
* ours with nothing: the same real worker whose steps return at once, so what it does for a job beside the job.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from redis import Redis
from rq import Queue, Worker
from rq.job import Job
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from rq.serializers import JSONSerializer

from benchmarks.service_load import idle
from benchmarks.service_load.photos import tiny_photo
from benchmarks.service_load.programs import (
    DOUBLE,
    environment,
    our_worker,
    running,
    valkey,
    wait_until,
)
from tests.helpers.service_doubles import Info
from worker.queue.rq import make_job, open_queue
from worker.queue.schema import PSEUDO_MASK, JobRequest, ModelRef, Options
from worker.storage import BlobStore

OURS = "our worker"
IDLE_OURS = "our worker, steps that return at once"
SAME = "SimpleWorker, our task"
NOTHING = "SimpleWorker, a function that returns at once"
AGAINST = {OURS: SAME, IDLE_OURS: NOTHING}
_QUEUES = {SAME: "plain-same", NOTHING: "plain-nothing"}
_NOTHING = "benchmarks.service_load.plain.nothing"
_TURN_SECONDS = 120.0
_WARM_UP = 10


def measure(data: Path, *, jobs: int, turns: int) -> dict[str, list[float]]:
    """Return the seconds of each turn, by worker; workers take turns, each turn in another order.

    Raises:
        SystemExit: if a worker does not start, a job fails or a turn takes minutes.
    """
    names = [OURS, SAME, IDLE_OURS, NOTHING]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        url, redis = stack.enter_context(valkey(data))
        stack.enter_context(our_worker(data, url, redis))
        stack.enter_context(
            our_worker(data, url, redis, program="benchmarks.service_load.idle", bundle=idle.IDLE)
        )
        for queue in _QUEUES.values():
            stack.enter_context(_simple_worker(data, url, redis, queue=queue))
        makers = _makers(redis, BlobStore.open(str(data / "blobs")))
        for name in names:
            _drain(redis, *makers[name], jobs=_WARM_UP)
        for turn in range(turns):
            for name in names[turn % 4 :] + names[: turn % 4]:
                seconds[name].append(_drain(redis, *makers[name], jobs=jobs))
    return seconds


def _makers(redis: Redis, blobs: BlobStore) -> dict[str, tuple[Queue, Callable[[], Job]]]:
    """Return each worker's queue, and what makes its next job."""
    requests = _requests(blobs)
    same, nothing = (
        Queue(_QUEUES[name], connection=redis, serializer=JSONSerializer)
        for name in (SAME, NOTHING)
    )

    def ours() -> Job:
        return make_job(redis, next(requests), timeout=60)

    return {
        OURS: (open_queue(redis, DOUBLE), ours),
        IDLE_OURS: (open_queue(redis, idle.IDLE), ours),
        SAME: (
            same,
            lambda: same.create_job(PSEUDO_MASK, args=(next(requests).model_dump(mode="json"),)),
        ),
        NOTHING: (nothing, lambda: nothing.create_job(_NOTHING)),
    }


def _requests(blobs: BlobStore) -> Iterator[JobRequest]:
    """Store one upload after the other and ask for its mask."""
    photo, info, number = tiny_photo("cat"), Info(), 0
    while True:
        number += 1
        yield JobRequest(
            image=blobs.put("uploads", photo.copy(number)),
            labels=photo.labels,
            options=Options(refine="none", min_confidence=0.0, background_threshold=0.4),
            model=ModelRef(name=info.name, version=info.version),
        )


def _drain(redis: Redis, queue: Queue, make: Callable[[], Job], *, jobs: int) -> float:
    """Return the seconds from a full queue until all its jobs are finished."""
    finished, failed = FinishedJobRegistry(queue=queue).key, FailedJobRegistry(queue=queue).key
    before = int(redis.zcard(finished))
    pipeline = redis.pipeline()
    for job in [make() for _ in range(jobs)]:
        queue.enqueue_job(job, pipeline=pipeline)
    pipeline.execute()
    started = time.perf_counter()
    while (done := int(redis.zcard(finished)) - before) < jobs:
        if redis.zcard(failed) or time.perf_counter() - started > _TURN_SECONDS:
            raise SystemExit(f"expected {jobs} finished jobs of {queue.name}, got {done}")
        time.sleep(0.002)
    return time.perf_counter() - started


@contextmanager
def _simple_worker(data: Path, url: str, redis: Redis, *, queue: str) -> Iterator[None]:
    where = [f"--redis-url={url}", f"--blobs={data / 'blobs'}"]
    options = [*where, f"--bundle={DOUBLE}", f"--queue={queue}"]
    command = [sys.executable, "-m", "benchmarks.service_load.plain", *options]
    with running(queue, command, data, environment()) as child:
        listening = Queue(queue, connection=redis)
        wait_until(lambda: Worker.count(queue=listening) > 0, child, what=f"starting {queue}")
        yield
