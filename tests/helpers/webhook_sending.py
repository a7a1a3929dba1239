"""One webhook for tests: sent to a receiver, whatever it says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.helpers.webhook_receiver import SECRET, Receiver, receiving
from worker.webhooks.sender import Attempt, Sender, parse_secret
from worker.webhooks.store import Callback, Recipient


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as there:
        yield there


def callback(url: str, *, job: str = "0" * 32, root: str = "") -> Callback:
    return Callback(message="msg_1", job=job, to=Recipient(url=url, root=root), since=0)


def send(url: str, *, now: datetime | None = None, **options: Any) -> Attempt:
    sender = Sender(parse_secret(SECRET), **{"allow_private": True, **options})
    body = '{"type": "job.finished", "name": "bücher"}'
    return asyncio.run(sender.send(callback(url), body, now=now or datetime.now(UTC)))
