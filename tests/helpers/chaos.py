"""A stack whose parts can be killed, and what must hold afterwards whatever was done to it."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rq.results import Result

from service.jobs.service import JobService
from service.local import redis_server
from service.local.supervisor import Child
from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, stop, wait_for
from tests.helpers.undisturbed import SIZES, Asked, undisturbed
from worker.queue.jobs import Limits, result_of
from worker.queue.rq import fetch_job, open_redis
from worker.queue.schema import MAX_JOB_ATTEMPTS, JobResult, queue_name
from worker.storage import BlobStore, blob_key

TERMINAL = ("finished", "failed", "canceled")
LABELS = (("cat",), ("bowl",), ("cat", "bowl"), ("dining table",), ("cat", "dining table"))


class Server:
    """The product's own Valkey, in a data folder."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self.path = redis_server.socket_path(data)
        self.start()

    def start(self) -> None:
        """Start it, with what its append-only file says."""
        log = self._data / "redis.log"
        self._child = Child(redis_server.server_command(self._data, self.path, log=log))
        wait_for(lambda: redis_server.answers(self.path), what="valkey")

    def kill(self) -> None:
        """As kill -9."""
        self._child.kill()

    def stop(self) -> None:
        stop(self._child)


@dataclass
class Scene:
    """A server, workers, and the jobs that were accepted."""

    server: Server
    place: Place
    workers: list[WorkerProcess] = field(default_factory=list)
    accepted: dict[str, Asked] = field(default_factory=dict)

    def worker(self) -> WorkerProcess:
        """Start one more worker."""
        worker = WorkerProcess(self.place)
        self.workers.append(worker)  # first, so that it is stopped even if it does not start
        worker.start()
        return worker

    def jobs(self, *, timeout: int = 30) -> JobService:
        """The API's side of the queue."""
        return JobService(self.place.redis, self.place.blobs, Limits(job_timeout=timeout))

    def post(self, *labels: str, size: tuple[int, int] = SIZES[0], timeout: int = 30) -> str:
        """Have a job about a new image accepted, and return its id."""
        self.place.requests += 1
        return self.submit(Asked(labels, size), self.place.requests, timeout=timeout)

    def submit(self, asked: Asked, number: int, *, timeout: int = 30) -> str:
        """Have a job accepted, be it the first time or not, and return its id."""
        job = self.jobs(timeout=timeout).submit(*asked.request(number), pixels=asked.size[0] * asked.size[1])
        self.accepted[job.id] = asked
        return str(job.id)

    def post_mixed(self, count: int, *extra: str) -> list[str]:
        """Have jobs accepted whose results differ, so that a mix-up shows."""
        return [self.post(*LABELS[n % len(LABELS)], *extra, size=SIZES[n % len(SIZES)]) for n in range(count)]

    def job(self, job_id: str) -> Any:
        return fetch_job(self.place.redis, job_id)

    def stage(self, job_id: str) -> str:
        """The latest stage of a job's progress."""
        return str(self.job(job_id).meta.get("progress", {}).get("stage", ""))

    def leased(self) -> set[str]:
        """The jobs that workers have leased."""
        return {entry.decode().partition(":")[0] for entry in self.place.leftovers()["wip"]}

    def wait_batch(self, *, least: int = 2) -> set[str]:
        """Wait for a worker in the middle of a forward pass, and return the leased jobs."""
        wait_for(
            lambda: any(self.stage(each) == "cam" for each in self.leased()) and len(self.leased()) >= least,
            what="a batch in the networks",
        )
        return self.leased()

    def states(self) -> Counter[str]:
        """How many accepted jobs are in which state; "lost" if Redis does not know a job."""
        with self.place.redis.pipeline(transaction=False) as pipeline:
            for job_id in self.accepted:
                pipeline.hget(f"rq:job:{job_id}", "status")
            return Counter(each.decode() if each else "lost" for each in pipeline.execute())

    def wait_all(self, *, seconds: float = 90.0, meanwhile: Callable[[], object] = lambda: None) -> Counter[str]:
        """Wait until every job has a terminal state and no lease is left; return the states."""

        def settled() -> bool:
            meanwhile()
            states = self.states()
            return all(each in (*TERMINAL, "lost") for each in states) and self._calm()

        wait_for(settled, seconds=seconds, what="the end of all jobs")
        return self.states()

    def all_finish(self) -> bool:
        """Wait for the end of all jobs, and return whether it is the best."""
        return self.wait_all() == {"finished": len(self.accepted)}

    def _calm(self) -> bool:
        return self.place.leftovers() == NOTHING and not self.place.redis.keys("rq:execution:*")

    def attempts_lost(self, job_id: str) -> int:
        """How many workers a job has taken down, or lost."""
        return MAX_JOB_ATTEMPTS - 1 - int(self.job(job_id).retries_left)

    def problems(self) -> list[str]:
        """What does not hold, once all jobs have come to their end; nothing if all is well.

        Each accepted job has one terminal state and is in one registry; a finished one has one successful result,
        which is what an undisturbed worker makes of it, to the byte; queue, intermediate list and leases are empty;
        each stored result belongs to a finished job, or to one that was given up when its files were stored.
        """
        found = [f"{name}: {ids}" for name, ids in self.place.leftovers().items() if ids]
        found += [f"left: {key!r}" for key in self.place.redis.keys("rq:execution:*")]
        for pattern in ("rq:executions:*", "rq:worker:*:executions"):
            keys = self.place.redis.keys(pattern)
            found += [f"forever: {key!r}" for key in keys if self.place.redis.ttl(key) == -1]
        known: set[str] = set()
        for job_id, asked in self.accepted.items():
            known.update(undisturbed(asked).blobs.model_dump().values())
            found += [f"{job_id}: {problem}" for problem in self._problems_of(job_id, asked)]
        found += [f"orphan: {key}" for key in set(self.place.blobs.keys("results")) - known]
        return found

    def unfinished_files(self) -> list[Path]:
        """What killed workers were about to store."""
        return list((self.place.data / "blobs" / "incoming").glob("*"))

    def unowned(self) -> set[str]:
        """Stored results of jobs that did not finish after all: the sweep takes them."""
        return set(self.place.blobs.keys("results")) - {
            key
            for job_id in self.accepted
            if (result := result_of(self.job(job_id))) is not None
            for key in result.blobs.model_dump().values()
        }

    def _problems_of(self, job_id: str, asked: Asked) -> Iterator[str]:
        job = self.job(job_id)
        if job is None:
            yield "lost"
            return
        status = job.get_status(refresh=False).value
        queue = queue_name("double")
        redis = self.place.redis
        registries = [n for n in TERMINAL if redis.zscore(f"rq:{n}:{queue}", job_id) is not None]
        if registries != [status]:
            yield f"{status}, but in the registries {registries}"
        types = [each.type for each in job.results()]
        if types.count(Result.Type.SUCCESSFUL) != int(status == "finished"):
            yield f"{status}, with the results {types}"
        if status == "finished":
            yield from self._differences(job, asked)

    def _differences(self, job: Any, asked: Asked) -> Iterator[str]:
        got, expected = JobResult.model_validate(job.return_value()), undisturbed(asked)
        if got.blobs != expected.blobs or got.classes != expected.classes:
            yield f"expected {expected.blobs} {expected.classes}, got {got.blobs} {got.classes}"
        for key in got.blobs.model_dump().values():
            if blob_key("results", self.place.blobs.get(key)) != key:
                yield f"not what its key says: {key}"


@contextmanager
def scene(data: Path) -> Iterator[Scene]:
    """A fresh server without workers; all that was started is stopped."""
    server = Server(data)
    url = redis_server.socket_url(server.path)
    place = Place(data, url, open_redis(url), BlobStore.open(str(data / "blobs")))
    made = Scene(server, place)
    try:
        yield made
    finally:
        for worker in made.workers:
            worker.stop()
        place.redis.close()
        server.stop()


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made
