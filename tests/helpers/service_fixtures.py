"""A real embedded Valkey, a real worker process, a real HTTP server: fixtures and helpers."""

import io
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from PIL import Image
from redis import Redis

from models.inference.masks import MaskOptions
from service.__main__ import _server_config
from service.app import create_app
from service.local import redis_server
from service.local.supervisor import Child, Command
from service.settings import Settings
from tests.helpers.service_doubles import Info
from worker.queue.registry import ModelInfo, WorkerInfo, announce, live_workers, withdraw
from worker.queue.rq import JobQueue, LeasedQueue, make_job, open_redis
from worker.queue.schema import LEASE_SECONDS, JobRequest, ModelRef
from worker.storage import BlobStore
from worker.webhooks.urls import Resolve, resolve_host

LEASE = 3


def wait_for(condition: Callable[[], Any], *, seconds: float = 30.0, what: str = "it") -> None:
    """Wait, not forever: for how long is no part of any claim."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen in {seconds} s")
        time.sleep(0.02)


def png(*, width: int = 30, height: int = 20, color: Any = (200, 30, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Place:
    """Where the parts of a stack meet: Redis, blobs, logs."""

    data: Path
    url: str
    redis: Redis
    blobs: BlobStore
    requests: int = 0

    @cached_property
    def jobs(self) -> JobQueue:
        return JobQueue(self.redis, "double", lease=LEASE)

    @property
    def options(self) -> tuple[str, ...]:
        """Where the programs of the stack find Redis and blobs."""
        return ("--redis-url", self.url, "--blobs", str(self.data / "blobs"))

    @property
    def queue(self) -> LeasedQueue:
        """Where posted jobs wait."""
        return self.jobs.interactive

    def leftovers(self) -> dict[str, list[bytes]]:
        """What must be empty when all work is done: queues, intermediate lists, leased jobs."""
        queues, lrange = self.jobs.rq_queues, self.redis.lrange
        waiting = [lrange(each.key, 0, -1) for each in queues]
        taken = [lrange(each.intermediate_queue_key, 0, -1) for each in queues]
        leased = [self.redis.zrange(each.started_job_registry.key, 0, -1) for each in queues]
        found = {"queue": waiting, "intermediate": taken, "wip": leased}
        return {name: [job for part in parts for job in part] for name, parts in found.items()}

    def request(self, *labels: str, finds: int = 0) -> JobRequest:
        """A request for an image that no other is about; without labels, to segment it.

        The segmenter of the misbehaving predictor finds the class of index ``finds``.
        """
        self.requests += 1
        return JobRequest(
            task="pseudo_mask" if labels else "segment",
            image=self.blobs.put("uploads", png(color=(self.requests, 0, finds))),
            labels=labels,
            options=MaskOptions(refine="none", min_confidence=0.0, background_threshold=0.4),
            model=ModelRef(name="double", version="0123456789ab"),
        )

    def post(self, *labels: str, finds: int = 0, timeout: int = 30) -> Any:
        """Queue a job without the API."""
        job = make_job(self.redis, self.request(*labels, finds=finds), timeout=timeout)
        return self.queue.enqueue_job(job, unique=True)

    def announce(self, info: Any = None, *, alive: bool = True, lease: int = LEASE_SECONDS) -> None:
        """Announce a model as a live worker does, or as one that has stopped."""
        model = ModelInfo.model_validate((info or Info()).to_json())
        worker = WorkerInfo(name="w", model=model.ref, device="cpu", host="h", pid=1)
        announce(self.redis, worker, model, lease=lease)
        if not alive:
            withdraw(self.redis, worker.name)

    def wait_done(self, job: Any, *, seconds: float = 60.0) -> Any:
        wait_for(lambda: job.get_status() in ("finished", "failed"), seconds=seconds, what="the job")
        job.refresh()
        return job


NOTHING: dict[str, list[bytes]] = {"queue": [], "intermediate": [], "wip": []}


def stop(child: Child) -> None:
    child.ask_to_stop()
    child.wait()


@contextmanager
def server_process(data: Path) -> Iterator[str]:
    """The product's own embedded server with the data of a folder; yields its URL."""
    path = redis_server.socket_path(data)
    child = Child(redis_server.server_command(data, path, log=data / "redis.log"))
    try:
        wait_for(lambda: redis_server.answers(path), what="valkey")
        yield redis_server.socket_url(path)
    finally:
        stop(child)


@contextmanager
def valkey(data: Path) -> Iterator[Place]:
    """A place around an embedded server of its own."""
    with server_process(data) as url, closing(open_redis(url)) as redis:
        yield Place(data, url, redis, BlobStore.open(str(data / "blobs")))


@contextmanager
def janitor_process(place: Place, **environment: str) -> Iterator[Child]:
    program = (sys.executable, "-m", "worker", "janitor", "--interval", "0.2", "--lease", str(LEASE))
    log = place.data / "janitor.log"
    child = Child(Command("janitor", [*program, *place.options], log=log, environment=environment, grace=30))
    try:
        yield child
    finally:
        stop(child)


class WorkerProcess:
    """A worker of the misbehaving predictor, in a process of its own."""

    def __init__(self, place: Place, *, bundle: str = "double", options: Sequence[str] = ()) -> None:
        self.place = place
        self.bundle = bundle
        self.options = options
        self.child: Child | None = None

    def start(self, *, ready: bool = True) -> Child:
        arguments = [
            *(sys.executable, "-m", "tests.helpers.service_doubles"),
            *self.place.options,
            *("--lease", str(LEASE), "--bundle", self.bundle),
            *("--batch", "8"),  # as on a GPU
            *self.options,
        ]
        child = Child(Command("worker", arguments, log=self.place.data / "worker.log", grace=20))
        self.child = child
        if ready:
            wait_for(lambda: self._has_started(child), what="the worker")
        return child

    def _has_started(self, child: Child) -> bool:
        code = child.exit_code
        if code == -signal.SIGKILL:  # by the job "kills", before anybody looked
            return True
        if code is not None:
            raise RuntimeError(f"expected a worker that runs, got exit code {code}: {self.log()[-2000:]}")
        return any(worker.pid == child.pid for worker in live_workers(self.place.redis))

    def ensure(self) -> Child:
        """The running process; a new one if a job has killed it."""
        if self.child is None or self.child.exit_code is not None:
            return self.start()
        return self.child

    def kill(self) -> None:
        """As an out-of-memory killer does."""
        child = self.ensure()
        os.kill(child.pid, signal.SIGKILL)
        wait_for(lambda: child.exit_code is not None)

    def stop(self) -> int:
        """Ask it to stop, and return its exit code."""
        if self.child is None:
            return 0
        stop(self.child)
        code = self.child.exit_code
        return -1 if code is None else code

    def log(self) -> str:
        return (self.place.data / "worker.log").read_text()


@contextmanager
def http_api(place: Place, *, resolve: Resolve = resolve_host, **settings: Any) -> Iterator[httpx.Client]:
    """The API on a real socket, with settings of the test's choice; yields a client."""
    chosen = Settings(redis_url=place.url, blobs=str(place.data / "blobs"), **settings)
    app = create_app(chosen, place.redis, place.blobs, resolve=resolve)
    config = _server_config(app)
    config.timeout_graceful_shutdown = 2
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started, what="the API")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=70) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(timeout=15)
        listener.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with valkey(tmp_path_factory.mktemp("place")) as there:
        yield there


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Place]:
    """A place of the test's own."""
    with valkey(tmp_path) as there:
        yield there


@pytest.fixture
def idle(place: Place) -> Iterator[Place]:
    """A place with an announced model, an empty queue and no worker."""
    place.redis.flushdb()
    place.announce(alive=False)
    yield place
    place.redis.flushdb()


@pytest.fixture(scope="module")
def running_worker(place: Place) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(place)
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def worker(running_worker: WorkerProcess) -> WorkerProcess:
    """A live worker, whatever the test before did to it."""
    running_worker.ensure()
    return running_worker


@pytest.fixture(scope="module")
def api(place: Place) -> Iterator[httpx.Client]:
    with http_api(place) as client:
        yield client
