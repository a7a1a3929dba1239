"""Callbacks under a clock that tests move, and a receiver that notes what it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from redis import Redis

from tests.helpers.service_fixtures import Place
from tests.helpers.webhook_receiver import SECRET, Receiver, receiving
from worker.webhooks import store
from worker.webhooks.sender import Sender, deliver_due, parse_secret
from worker.webhooks.store import Recipient, register

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
        return [*redis.zrange(store.DUE_KEY, 0, -1), *redis.keys("semples:callback:*")]


@pytest.fixture
def desk(place: Place) -> Iterator[Desk]:
    place.redis.flushdb()
    with receiving() as receiver:
        yield Desk(place, receiver)
    place.redis.flushdb()
