"""A receiver of webhooks on this host, one attempt to it, and subscriptions under a clock that tests set."""

import asyncio
import json
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any

import pytest
from redis import Redis

from tests.helpers.service_fixtures import Place
from worker.webhooks import store
from worker.webhooks.sender import Sender, _DeliveryResult, deliver_due, parse_secret
from worker.webhooks.store import Recipient, Subscription
from worker.webhooks.urls import Resolve

PUBLIC = "93.184.216.34"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # the specification's example


@dataclass(frozen=True)
class Delivery:
    """A request that was received."""

    path: str
    headers: dict[str, str]
    body: str


@dataclass
class Receiver:
    """Server on 127.0.0.1 that records requests."""

    port: int
    statuses: list[int] = field(default_factory=list)  # of the next answers, then 204
    deliveries: list[Delivery] = field(default_factory=list)
    location: str = ""  # of redirects
    unread: bytes = b""  # beginning of a body that is announced as longer

    def url(self, path: str = "/hook", *, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    server = _Server(("127.0.0.1", 0), _Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver = Receiver(server.server_address[1])
    server.receiver = receiver  # type: ignore[attr-defined]
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that hangs up
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        receiver: Receiver = self.server.receiver  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        headers = {key.lower(): value for key, value in self.headers.items()}
        receiver.deliveries.append(Delivery(self.path, headers, body))
        self.send_response(receiver.statuses.pop(0) if receiver.statuses else 204)
        if receiver.location:
            self.send_header("Location", receiver.location)
        if receiver.unread:
            self.send_header("Content-Length", str(10**12))
        self.end_headers()
        if receiver.unread:
            self.wfile.write(receiver.unread)

    def log_message(self, *_: Any) -> None:
        """No log."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as there:
        yield there


def resolver(*addresses: str) -> Resolve:
    """A resolver with these addresses for every host."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolve


async def never_resolves(host: str, port: int) -> Sequence[str]:
    await asyncio.sleep(3600)
    return ()


def subscription(url: str, *, job: str = "0" * 32, root: str = "") -> Subscription:
    return Subscription(message="msg_1", job=job, to=Recipient(url=url, root=root), since=0)


def send(url: str, *, now: datetime | None = None, **options: Any) -> _DeliveryResult:
    sender = Sender(parse_secret(SECRET), **{"allow_private": True, **options})
    body = '{"type": "job.finished", "name": "bücher"}'
    return asyncio.run(sender.send(subscription(url), body, now=now or datetime.now(UTC)))


class Notifications:
    """Subscriptions, a sender and a receiver under a clock that stands still unless a test moves it."""

    def __init__(self, place: Place, receiver: Receiver) -> None:
        self.place, self.receiver = place, receiver
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.sender = Sender(parse_secret(SECRET), allow_private=True)

    def post(self, path: str = "/hook", *, url: str = "") -> Any:
        """A queued job and a subscription to it."""
        job = self.place.post("cat")
        self.subscribe(job.id, path, url=url)
        return job

    def subscribe(self, job_id: str, path: str = "/hook", *, url: str = "") -> None:
        to = Recipient(url=url or self.receiver.url(path))
        store.register(self.place.redis, job_id, to, now=self.now.timestamp())

    def deliver(self, *, after: float = 0.0) -> int:
        """Move the clock and send what is due; the number of attempts."""
        self.now += timedelta(seconds=after)
        redis = self.place.redis
        return deliver_due(redis, self.sender, clock=lambda: self.now, random=Random(0))

    def received(self) -> list[str]:
        return [f"{d.path} {json.loads(d.body)['type']}" for d in self.receiver.deliveries]

    def left(self) -> list[bytes]:
        redis: Redis = self.place.redis
        return [*redis.zrange(store.DUE_KEY, 0, -1), *redis.keys("semples:callback:*")]


@pytest.fixture
def hooks(place: Place, receiver: Receiver) -> Iterator[Notifications]:
    place.redis.flushdb()
    yield Notifications(place, receiver)
    place.redis.flushdb()
