"""All webhooks: told once the job has ended, each wish once, many at a time and none lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from rq.job import JobStatus

from tests.helpers.callback_desk import Desk
from tests.helpers.webhook_receiver import SECRET
from worker.webhooks import store
from worker.webhooks.sender import BATCH, GRACE_SECONDS, PER_HOST, Sender, parse_secret
from worker.webhooks.store import CallbacksFullError, due


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
    monkeypatch.setattr(store, "MAX_CALLBACKS", 2)
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
