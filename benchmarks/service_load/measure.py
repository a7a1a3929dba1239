"""The measurements: the bare predictor, the service, LitServe, and a job that costs nothing but its way."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from redis import Redis
from rq import Queue, Worker
from rq.job import Job
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from rq.serializers import JSONSerializer

from benchmarks.service_load import idle, programs
from benchmarks.service_load.figures import Load
from benchmarks.service_load.load import Bounds, LabeledPhoto, Target, press, tiny_photo
from benchmarks.service_load.programs import (
    DOUBLE,
    environment,
    our_worker,
    running,
    valkey,
    wait_until,
)
from models.inference.masks import MaskOptions
from tests.helpers.service_doubles import Info
from worker.queue.rq import JobQueue, make_job
from worker.queue.schema import JobRequest, ModelRef
from worker.storage import BlobStore

BARE = "bare predictor"
PATH = "/pseudo-mask?wait=60"
WARM_UP = 8
LONG_WARM_UP = 1000
"""Requests after which the blob store has its folders: until then many a request makes one, and a few ms longer."""
LITSERVE = importlib.util.find_spec("litserve") is not None

Start = Callable[[Path], AbstractContextManager[int]]
Step = Callable[[], dict[str, Load]]


@dataclass(frozen=True)
class Run:
    """What all measurements of a run have in common.

    Attributes:
        model: what is served.
        data: folder of photos, None for the demo's.
        photos: from there.
        bounds: of each measurement.
        levels: concurrencies.
        batch: largest batch of the bare predictor and of LitServe.
    """

    model: programs.Model
    data: Path | None
    photos: Sequence[LabeledPhoto]
    bounds: Bounds
    levels: Sequence[int]
    batch: int


def steps(run: Run, parts: Sequence[str]) -> list[Step]:
    """Return a turn's measurements; the bare predictor is always among them, and LitServe only if it is installed."""
    chosen: list[Step] = [partial(bare, run)]
    if "service" in parts:
        fields = {"refine": run.model.refine}
        serve = partial(programs.service, model=run.model)
        chosen.append(partial(_levels, run, "service", serve, PATH, fields))
    if "litserve" in parts and LITSERVE:
        for batch in (1, run.batch):
            name = f"LitServe, batches of up to {batch}" if batch > 1 else "LitServe"
            serve = partial(programs.litserve, model=run.model, batch=batch)
            chosen.append(partial(_levels, run, name, serve, "/predict", {}))
    return chosen


def bare(run: Run) -> dict[str, Load]:
    """Measure the predictor in a process of its own, one by one and in batches.

    Raises:
        SystemExit: with its last words, if it fails.
    """
    options = [
        *run.model.arguments(),
        *([f"--data={run.data}"] if run.data else []),
        *(f"--requests={run.bounds.requests}", f"--seconds={run.bounds.seconds}"),
        *(f"--warm-up={WARM_UP}", f"--batch={run.batch}"),
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.service_load.bare", *options],
            env={**os.environ, **programs.environment(run.model.threads)},
            capture_output=True,
            text=True,
            timeout=programs.START_SECONDS + 4 * run.bounds.seconds,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"the bare predictor failed: {error.stderr}") from error
    except subprocess.TimeoutExpired as error:
        raise SystemExit(f"the bare predictor took more than {error.timeout} s") from error
    measured = json.loads(done.stdout)
    return {
        BARE: _load(measured["alone"]),
        f"{BARE}, batches of up to {run.batch}": _load(measured["batches"]),
    }


def durable(bounds: Bounds) -> Load:
    """Measure requests, one at a time, whose predictor answers at once: what is left is the durable way."""
    numbers, photos = itertools.count(), [tiny_photo("cat")]
    press_one = partial(press, photos=photos, concurrency=1, numbers=numbers)
    with (
        tempfile.TemporaryDirectory(prefix="semples-load-") as folder,
        programs.instant_service(Path(folder)) as port,
    ):
        target = Target(port, PATH, {"refine": "none"})
        press_one(target, bounds=Bounds(LONG_WARM_UP, bounds.seconds))
        return press_one(target, bounds=bounds)


def _levels(run: Run, name: str, start: Start, path: str, fields: Mapping[str, str]) -> dict[str, Load]:
    """Start a server and measure it at each concurrency."""
    numbers = itertools.count()
    with (
        tempfile.TemporaryDirectory(prefix="semples-load-") as folder,
        start(Path(folder)) as port,
    ):
        press_it = partial(press, Target(port, path, fields), run.photos, numbers=numbers)
        press_it(concurrency=1, bounds=Bounds(WARM_UP, run.bounds.seconds))
        return {f"{name}, {level} at once": press_it(concurrency=level, bounds=run.bounds) for level in run.levels}


def _load(measured: Mapping[str, Any]) -> Load:
    return Load(tuple(measured["seconds"]), measured["wall"])


# How fast workers get through jobs that do next to nothing: ours, and a plain RQ SimpleWorker, on one Valkey.
#
# All workers run all the time and wait at their queues. In a turn one queue is filled in one transaction, and the
# time is taken from then until RQ's registries hold as many more finished jobs. What a job includes:
#
# * ours: the real worker process with a predictor that answers at once: RQ's bookkeeping, leases, the upload read and
#   decoded (32 × 24 pixels), mask and scores encoded and stored;
# * the SimpleWorker with our task: the same steps, hence the same work, one job after the other;
# * the SimpleWorker with nothing: a function that returns at once;
# * ours with nothing: the same real worker whose steps return at once, so what it does for a job beside the job.

OURS = "our worker"
IDLE_OURS = "our worker, steps that return at once"
SAME = "SimpleWorker, our task"
NOTHING = "SimpleWorker, a function that returns at once"
AGAINST = {OURS: SAME, IDLE_OURS: NOTHING}
_QUEUES = {SAME: "plain-same", NOTHING: "plain-nothing"}
_SAME, _NOTHING = (f"benchmarks.service_load.plain.{name}" for name in ("same", "nothing"))
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
        stack.enter_context(our_worker(data, url, redis, program="benchmarks.service_load.idle", bundle=idle.IDLE))
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
    same, nothing = (Queue(_QUEUES[name], connection=redis, serializer=JSONSerializer) for name in (SAME, NOTHING))

    def ours() -> Job:
        return make_job(redis, next(requests), timeout=60)

    return {
        OURS: (JobQueue(redis, DOUBLE).interactive, ours),
        IDLE_OURS: (JobQueue(redis, idle.IDLE).interactive, ours),
        SAME: (
            same,
            lambda: same.create_job(_SAME, args=(next(requests).model_dump(mode="json"),)),
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
            options=MaskOptions(refine="none", min_confidence=0.0, background_threshold=0.4),
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
