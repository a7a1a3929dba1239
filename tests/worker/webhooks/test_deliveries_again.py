"""Webhooks that are not heard: told again, ever later, then given up."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from rq.job import JobStatus

from tests.helpers.callback_desk import Desk
from tests.helpers.webhook_receiver import SECRET
from tests.worker.webhooks.test_callback_url import PUBLIC
from worker.webhooks.sender import (
    CLAIM_SECONDS,
    JITTER,
    MAX_DELIVERIES,
    Sender,
    parse_secret,
    pause_after,
)


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
