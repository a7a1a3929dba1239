"""All webhooks: told once the job has ended, told again until it is heard, then given up."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from redis import Redis
from rq.job import JobStatus

from tests.service_fixtures import Place
from tests.test_callback_url import PUBLIC
from tests.webhook_receiver import SECRET, Receiver, receiving
from worker import callbacks
from worker.callbacks import CallbacksFullError, Recipient, due, register
from worker.deliveries import (
    BATCH,
    CLAIM_SECONDS,
    GRACE_SECONDS,
    JITTER,
    MAX_DELIVERIES,
    PER_HOST,
    deliver_due,
    pause_after,
)
from worker.signing import parse_secret
from worker.webhooks import Sender

START = datetime(2026, 1, 1, tzinfo=UTC)


class Desk:
    """Callbacks under a clock that stands still unless it is moved."""

    def __init__(self, place: Place, receiver: Receiver) -> None:
        self.place, self.receiver = place, receiver
        self.now = START
        self.sender = Sender(parse_secret(SECRET), allow_private=True)

    def post(self, path: str = "/hook", *, url: str = "") -> Any:
        job = self.place.post("cat")
        self.wish(job.id, path, url=url)
        return job

    def wish(self, job_id: str, path: str = "/hook", *, url: str = "") -> None:
        to = Recipient(url=url or self.receiver.url(path))
        register(self.place.redis, job_id, to, now=self.now.timestamp())

    def work(self, *, after: float = 0.0) -> int:
        self.now += timedelta(seconds=after)
        redis = self.place.redis
        return deliver_due(redis, self.sender, clock=lambda: self.now, random=Random(0))

    def told(self) -> list[str]:
        return [
            f"{delivery.path} {json.loads(delivery.body)['type']}"
            for delivery in self.receiver.deliveries
        ]

    def left(self) -> list[bytes]:
        redis: Redis = self.place.redis
        return [*redis.zrange(callbacks.DUE_KEY, 0, -1), *redis.keys("semples:callback:*")]


@pytest.fixture
def desk(place: Place) -> Iterator[Desk]:
    place.redis.flushdb()
    with receiving() as receiver:
        yield Desk(place, receiver)
    place.redis.flushdb()


def test_nothing_is_told_before_the_end_and_then_once(desk: Desk) -> None:
    job = desk.post()
    assert desk.work() == 0
    job.set_status(JobStatus.STARTED)
    assert desk.work(after=2) == 0
    job.set_status(JobStatus.FINISHED)
    assert desk.work(after=2) == 1
    assert desk.told() == ["/hook job.finished"]
    assert desk.left() == []
    assert desk.work(after=1e6) == 0


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELED, JobStatus.STOPPED])
def test_other_ends(desk: Desk, status: JobStatus) -> None:
    desk.post().set_status(status)
    assert desk.work() == 1
    word = "failed" if status == JobStatus.FAILED else "canceled"
    assert desk.told() == [f"/hook job.{word}"]


def test_each_url_of_a_job_is_told_and_the_same_one_once(desk: Desk) -> None:
    job = desk.post("/a")
    desk.wish(job.id, "/b")
    desk.wish(job.id, "/a")
    job.set_status(JobStatus.FINISHED)
    assert desk.work() == 2
    assert sorted(desk.told()) == ["/a job.finished", "/b job.finished"]


def test_a_job_that_is_gone_is_told_too_but_not_before_it_can_be_queued(desk: Desk) -> None:
    desk.wish("0" * 32)
    assert desk.work() == 0
    assert desk.work(after=GRACE_SECONDS) == 0
    assert desk.work(after=1) == 1
    assert desk.told() == ["/hook job.gone"]
    assert desk.left() == []


def test_it_is_tried_again_ever_later_with_the_same_message(desk: Desk) -> None:
    job = desk.post()
    job.set_status(JobStatus.FAILED)
    desk.receiver.statuses = [500, 503, 302, 404]
    assert desk.work() == 1
    job.delete()  # its record expires before the receiver is well
    for attempts in (1, 2, 3, 4):
        most = pause_after(attempts, Random(0)) * (1 + JITTER) / (1 - JITTER)
        assert desk.work(after=pause_after(attempts, Random(0)) - 0.001) == 0
        assert desk.work(after=most) == 1
    assert desk.told() == ["/hook job.failed"] * 5
    assert len({(each.headers["webhook-id"], each.body) for each in desk.receiver.deliveries}) == 1
    stamps = [int(each.headers["webhook-timestamp"]) for each in desk.receiver.deliveries]
    assert stamps == sorted(set(stamps))  # each attempt is signed anew
    assert desk.left() == []


def test_pauses_grow_to_about_a_day_and_scatter() -> None:
    middle = [5.0**attempts for attempts in range(1, MAX_DELIVERIES)]
    assert 24 * 3600 < sum(middle) < 30 * 3600
    for attempts, pause in enumerate(middle, 1):
        found = {pause_after(attempts, Random(seed)) for seed in range(20)}
        assert len(found) == 20
        assert all((1 - JITTER) * pause <= each <= (1 + JITTER) * pause for each in found)


def test_a_receiver_that_is_down_for_good_is_given_up(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    job = desk.post(url=f"http://127.0.0.1:{port}/hook?key=secret")
    job.set_status(JobStatus.FINISHED)
    assert [desk.work(after=1e5) for _ in range(MAX_DELIVERIES + 1)] == [1] * MAX_DELIVERIES + [0]
    assert desk.left() == []
    [line] = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert line.startswith(f"job {job.id}: gave up telling 127.0.0.1 after 8 attempts: ")
    assert "secret" not in line


def test_410_is_the_end_at_once(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.post().set_status(JobStatus.FINISHED)
    desk.receiver.statuses = [410]
    assert desk.work() == 1
    assert desk.left() == []
    assert "after 1 attempts: answered 410" in caplog.text


def test_a_name_that_leads_inside_by_now_is_given_up(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    async def rebound(host: str, port: int) -> Sequence[str]:
        del host, port
        return [PUBLIC, "127.0.0.1"]

    desk.sender = Sender(parse_secret(SECRET), resolve=rebound)
    desk.post(url=desk.receiver.url(host="hooks.test")).set_status(JobStatus.FINISHED)
    assert desk.work() == 1
    assert (desk.told(), desk.left()) == ([], [])
    assert (
        "gave up telling hooks.test after 1 attempts: expected a host on the internet"
        in caplog.text
    )


def test_a_janitor_that_dies_while_sending_tells_it_again(desk: Desk) -> None:
    class KilledError(BaseException):
        """As a power cut."""

    class Dying(Sender):
        async def send(self, *arguments: Any, **options: Any) -> Any:
            await super().send(*arguments, **options)
            raise KilledError

    well = desk.sender
    desk.post().set_status(JobStatus.FINISHED)
    desk.sender = Dying(parse_secret(SECRET), allow_private=True)
    with pytest.raises(KilledError):
        desk.work()
    desk.sender = well
    assert desk.work(after=CLAIM_SECONDS / 2) == 0  # for another janitor may be at it
    assert desk.work(after=CLAIM_SECONDS) == 1
    assert desk.told() == ["/hook job.finished"] * 2
    assert len({each.headers["webhook-id"] for each in desk.receiver.deliveries}) == 1
    assert desk.left() == []


@pytest.mark.parametrize("status", [204, 500])
def test_a_wish_that_is_renewed_meanwhile_is_kept(desk: Desk, status: int) -> None:
    job = desk.post()

    class Interrupted(Sender):
        async def send(self, *arguments: Any, **options: Any) -> Any:
            attempt = await super().send(*arguments, **options)
            desk.wish(job.id)  # posted again, and run again
            job.set_status(JobStatus.QUEUED)
            return attempt

    job.set_status(JobStatus.FAILED)
    well, desk.sender = desk.sender, Interrupted(parse_secret(SECRET), allow_private=True)
    desk.receiver.statuses = [status]
    assert desk.work() == 1
    desk.sender = well
    assert desk.work() == 0
    job.set_status(JobStatus.FINISHED)
    assert desk.work() == 1
    assert desk.told() == ["/hook job.failed", "/hook job.finished"]
    first, second = (each.headers["webhook-id"] for each in desk.receiver.deliveries)
    assert first != second


def test_many_go_out_at_once_but_not_to_one_host_and_none_is_lost(desk: Desk) -> None:
    async def everybody(host: str, port: int) -> Sequence[str]:
        del host, port
        return ["127.0.0.1"]

    desk.sender = Sender(parse_secret(SECRET), allow_private=True, resolve=everybody)
    job = desk.post("/0")
    for number in range(1, PER_HOST + 20):
        desk.wish(job.id, f"/{number}")
    for number in range(BATCH):
        desk.wish(job.id, url=desk.receiver.url(f"/other{number}", host=f"host{number}.test"))
    job.set_status(JobStatus.FINISHED)
    seen = 0
    while sent := desk.work():
        round_, seen = desk.told()[seen:], seen + sent
        assert sent == len(round_) <= BATCH
        assert sum("other" not in each for each in round_) <= PER_HOST
    assert len(set(desk.told())) == PER_HOST + 20 + BATCH
    assert desk.left() == []


def test_too_many_are_not_taken(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "MAX_CALLBACKS", 2)
    desk.wish("0" * 32, "/a")
    desk.wish("0" * 32, "/b")
    with pytest.raises(CallbacksFullError, match="2 callbacks wait already"):
        desk.wish("0" * 32, "/c")


def test_a_record_that_expired_leaves_nothing_behind(desk: Desk) -> None:
    desk.wish("0" * 32)
    [key] = desk.place.redis.keys("semples:callback:*")
    assert desk.place.redis.ttl(key) > 3 * 24 * 3600
    desk.place.redis.delete(key)
    assert due(desk.place.redis, now=desk.now.timestamp()) == []
    assert desk.left() == []
