"""The janitor's process: what it does where nobody else would, and what it outlives."""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rq.job import JobStatus

from service.local.supervisor import Child, Command
from tests.helpers.batches import make_old, sweep
from tests.helpers.service_fixtures import (
    NOTHING,
    Place,
    WorkerProcess,
    janitor_process,
    png,
    server_process,
    stop,
    valkey,
    wait_for,
)
from tests.helpers.webhooks import SECRET, receiving
from worker import janitor
from worker.janitor import EXPIRY_KEY, run
from worker.queue.failures import note_abandoned
from worker.queue.registry import janitor_key
from worker.queue.rq import job_queues
from worker.queue.schema import BLOB_SECONDS, dead_key
from worker.settings import JanitorSettings
from worker.webhooks.store import Recipient, register

HERE = janitor_key(socket.gethostname())


def at_work(place: Place, child: Child) -> Callable[[], bool]:
    return lambda: bool(place.redis.get(HERE) == str(child.pid).encode())


@pytest.fixture(autouse=True)
def empty(place: Place) -> Iterator[None]:
    place.redis.flushdb()
    yield
    place.redis.flushdb()


@pytest.fixture
def dead_workers_job(place: Place) -> Any:
    """A job in the hands of a worker that was killed, the only one."""
    worker = WorkerProcess(place)
    worker.start()
    job = place.post("slow")
    wait_for(lambda: job.get_status() == "started", what="the start")
    worker.kill()
    return job


def test_a_dead_workers_job_is_queued_again_with_no_worker_alive(place: Place, dead_workers_job: Any) -> None:
    with janitor_process(place) as child:
        wait_for(lambda: dead_workers_job.get_status() == "queued", what="the janitor")
        assert place.leftovers() == {**NOTHING, "queue": [dead_workers_job.id.encode()]}
        wait_for(at_work(place, child), what="its sign of life")
        assert 0 < place.redis.ttl(HERE) <= janitor._HEARTBEAT_SECONDS
    dead_workers_job.refresh()
    assert dead_workers_job.retries_left == 1


def maintain_all(place: Place) -> None:
    for queue in job_queues(place.redis, lease=1):
        queue.maintain(note_abandoned)


@pytest.mark.parametrize("retries", [2, 0])
def test_a_job_between_queue_and_hand_waits_again_with_no_worker_alive(place: Place, retries: int) -> None:
    job = place.post("cat")
    job.retries_left = retries
    job.save()
    place.redis.lmove(place.queue.key, place.queue.intermediate_queue_key)

    def found() -> bool:
        maintain_all(place)
        return place.leftovers()["intermediate"] == []

    wait_for(found)
    job.refresh()
    assert job.get_status() == "queued"
    assert job.retries_left == retries  # nobody has begun with it
    assert place.leftovers()["queue"] == [job.id.encode()]


def test_all_models_queues_and_no_others(place: Place) -> None:
    place.post("cat")
    others = ("semples-another", "semples-third:batch", "somebody-elses")
    place.redis.sadd("rq:queues", *(f"rq:queue:{name}" for name in others))
    queues = job_queues(place.redis, lease=7)
    assert [(queue.interactive.name, queue.lease_seconds) for queue in queues] == [
        ("semples-another", 7),
        ("semples-double", 7),
        ("semples-third", 7),
    ]


def test_it_leaves_the_queue_to_the_holder_of_the_lock(place: Place) -> None:
    job = place.post("cat")
    place.redis.lmove(place.queue.key, place.queue.intermediate_queue_key)
    assert place.queue.acquire_maintenance_lock()
    for _ in range(3):
        maintain_all(place)
    assert place.leftovers()["intermediate"] == [job.id.encode()]


def test_expired_blobs_are_swept_and_dead_letters_forgotten(place: Place) -> None:
    old, new = (place.blobs.put("uploads", png(color=(9, 9, blue))) for blue in (1, 2))
    moment = time.time() - BLOB_SECONDS - 60
    os.utime(place.data / "blobs" / old, (moment, moment))
    place.redis.sadd("semples:dead", "double")
    place.redis.zadd(dead_key("double"), {"0" * 32: 1})
    with janitor_process(place):
        wait_for(lambda: not place.blobs.exists(old), what="the sweep")
        wait_for(lambda: not place.redis.exists(dead_key("double")), what="the letters")
    assert place.blobs.exists(new)
    assert "deleted 1 expired blobs" in (place.data / "janitor.log").read_text()


def test_ends_are_sent_to_subscribers(place: Place) -> None:
    environment = {"SEMPLES_WEBHOOK_SECRET": SECRET, "SEMPLES_WEBHOOK_PRIVATE": "1"}
    job = place.post("cat")
    with receiving() as receiver, janitor_process(place, **environment):
        url = receiver.url("/hook?key=receivers-own")
        register(place.redis, job.id, Recipient(url=url), now=time.time())
        job.set_status(JobStatus.FINISHED)
        wait_for(lambda: receiver.deliveries, what="the webhook")
        assert json.loads(receiver.deliveries[0].body)["data"]["id"] == job.id
        wait_for(lambda: not place.redis.exists("semples:callbacks"))
    log = (place.data / "janitor.log").read_text()
    assert "webhooks" in log
    assert "receivers-own" not in log


def test_without_a_secret_nothing_is_sent_and_nothing_lost(place: Place) -> None:
    job = place.post("cat")
    with receiving() as receiver:
        register(place.redis, job.id, Recipient(url=receiver.url()), now=time.time())
        job.set_status(JobStatus.FINISHED)
        with janitor_process(place, SEMPLES_WEBHOOK_SECRET="") as child:
            wait_for(at_work(place, child))
        assert receiver.deliveries == []
    assert place.redis.zcard("semples:callbacks") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it(place: Place, number: signal.Signals) -> None:
    with janitor_process(place) as child:
        wait_for(at_work(place, child))
        os.kill(child.pid, number)
        child.wait()
        assert child.exit_code == 0


def test_it_outlives_redis_even_at_the_start(tmp_path: Path) -> None:
    data = tmp_path / "d"
    data.mkdir()
    with valkey(data) as place:
        place.redis.shutdown(nosave=True)
        log = data / "janitor.log"
        with janitor_process(place) as child:
            wait_for(lambda: "maintenance: Error" in log.read_text(), what="its complaint")
            with server_process(data):
                wait_for(at_work(place, child), what="its recovery")
            assert child.exit_code is None
            stop(child)  # while Redis is stopped again
            assert child.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--redis-url", "http://x"], {}, "expected a Redis URL that begins with redis://"),
        (["--blobs", "nowhere://x"], {}, "cannot open the blob store"),
        ([], {"SEMPLES_WEBHOOK_SECRET": "password"}, "expected as webhook secret whsec_"),
    ],
)
def test_what_cannot_start_is_one_line(
    place: Place, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    command = [sys.executable, "-m", "worker", "janitor", *place.options, *arguments]
    log = place.data / f"{len(message)}.log"
    child = Child(Command("janitor", command, log=log, environment=environment))
    wait_for(lambda: child.exit_code is not None)
    assert child.exit_code == 3
    [line] = log.read_text().splitlines()
    assert line.startswith(f"semples janitor: {message}")
    assert "password" not in line


def test_a_bug_in_a_chore_ends_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*_: Any, **__: Any) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(janitor, "drop_expired_letters", buggy)
    settings = JanitorSettings(redis_url=place.url, blobs=str(place.data / "blobs"))
    assert run(settings, stop=threading.Event()) is False


def put_long_ago(place: Place) -> Path:
    path: Path = place.data / "blobs" / place.blobs.put("uploads", b"old")
    make_old(place)
    return path


def test_of_many_janitors_one_sweeps_at_a_time(place: Place) -> None:
    assert not place.redis.exists(EXPIRY_KEY)
    path = put_long_ago(place)
    sweep(place)
    assert not path.exists()

    put_long_ago(place)
    sweep(place)
    assert path.exists()

    # The turn ends before the same janitor's next one, should it be the only one.
    assert 0 < place.redis.ttl(EXPIRY_KEY) < 600
    place.redis.delete(EXPIRY_KEY)
    sweep(place)
    assert not path.exists()
