"""One webhook: what it says of a job, and one attempt to deliver it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import ssl
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from random import Random
from typing import Literal

import httpx
from pydantic import Field
from redis import Redis
from rq.job import Job
from standardwebhooks import Webhook

from worker.queue.jobs import (
    FINISHED_STATUSES,
    Status,
    failure_of,
    read_status,
    request_of,
    status_of,
)
from worker.queue.rq import fetch_job
from worker.queue.schema import JobFailure, ModelRef, Record, Task, job_links
from worker.webhooks.store import Callback, claim, due, forget, postpone
from worker.webhooks.urls import (
    CallbackRefusedError,
    HostUnknownError,
    Resolve,
    Target,
    find_target,
    resolve_host,
)

# Signatures after the Standard Webhooks specification: secrets and headers. Wire layer.

_PREFIX = "whsec_"
_FEWEST, _MOST = 24, 64


def parse_secret(text: str) -> bytes:
    """Return the bytes of a secret, which is ``whsec_`` and base64.

    Raises:
        ValueError: if it has another form, or is shorter or longer than the specification allows. The
            message does not repeat it.
    """
    try:
        # The library's own decoder skips what is no base64, and would take a passphrase for another.
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not text.startswith(_PREFIX) or not _FEWEST <= len(secret) <= _MOST:
        raise ValueError(
            f"expected as webhook secret {_PREFIX} and the base64 of {_FEWEST} to {_MOST} bytes, "
            f"got {len(text)} characters that are not that"
        )
    return secret


def signed_headers(secret: bytes, message: str, body: str, *, now: datetime) -> dict[str, str]:
    """Return the headers by which a receiver knows that we sent a body.

    Args:
        secret: shared with the receiver.
        message: the message's id, the same in each attempt to deliver it.
        body: what is sent.
        now: when this attempt is made, with a time zone.
    """
    whole = datetime.fromtimestamp(int(now.timestamp()), tz=now.tzinfo)
    return {
        "webhook-id": message,
        "webhook-timestamp": str(int(whole.timestamp())),
        "webhook-signature": Webhook(secret).sign(message, whole, body),
    }


SEND_SECONDS, CONNECT_SECONDS = 10.0, 3.0
_GONE = 410

Verdict = Literal["delivered", "again", "never"]


class JobNews(Record):
    """How a job ended; its whole document is at the link ``self``.

    Of a job that is gone, removed or expired before anybody could be told, no more is known than its id.
    """

    id: str
    status: Status | Literal["gone"]
    links: dict[str, str]
    task: Task | None = None
    model: ModelRef | None = None
    labels: tuple[str, ...] | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    failure: JobFailure | None = None


class News(Record):
    """The body of a webhook: ``job.finished``, ``job.failed``, ``job.canceled`` or ``job.gone``."""

    type: str = Field(pattern=r"job\.[a-z]+")
    timestamp: datetime
    data: JobNews


@dataclass(frozen=True)
class Attempt:
    """What came of sending: the verdict, and why in a few words for the log."""

    verdict: Verdict
    reason: str


def news_of(callback: Callback, job: Job | None, *, now: datetime) -> str:
    """Return the body of the webhook on a job that has ended, or is gone."""
    link = f"{callback.to.root}/jobs/{callback.job}"
    data = JobNews(id=callback.job, status="gone", links={"self": link})
    if job is not None:
        request, status = request_of(job), status_of(job)
        data = JobNews(
            id=job.id,
            status=status,
            links=job_links(link, finished=status == "finished"),
            task=request.task,
            model=request.model,
            labels=request.labels,
            created_at=job.created_at,
            started_at=job.started_at,
            ended_at=job.ended_at,
            failure=failure_of(job) if status == "failed" else None,
        )
    news = News(type=f"job.{data.status}", timestamp=now, data=data)
    return news.model_dump_json(exclude_none=True)


@dataclass(frozen=True)
class Sender:
    """Delivers webhooks.

    Attributes:
        secret: signs them; see ``worker.webhooks.sender``.
        allow_private: whether they may go to addresses that are not on the internet.
        resolve: finds a host's addresses.
        trust: whose certificates are taken.
    """

    secret: bytes = field(repr=False)
    allow_private: bool = False
    resolve: Resolve = resolve_host
    trust: ssl.SSLContext = field(default_factory=httpx.create_ssl_context)

    async def send(self, callback: Callback, body: str, *, now: datetime) -> Attempt:
        """Make one attempt, of a few seconds at most; whatever goes wrong outside is the attempt's reason.

        The URL is judged anew, and the connection made to the very address that was judged.
        """
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "semples",
            **signed_headers(self.secret, callback.message, body, now=now),
        }
        try:
            # httpx's own limits are for each step, and a receiver could take many small ones.
            async with asyncio.timeout(SEND_SECONDS):
                target = await find_target(
                    callback.to.url, allow_private=self.allow_private, resolve=self.resolve
                )
                status = await self._post(target, body, headers)
        except HostUnknownError as error:
            return Attempt("again", str(error))
        except CallbackRefusedError as error:
            return Attempt("never", str(error))
        except TimeoutError:
            return Attempt("again", f"no answer within {SEND_SECONDS:.0f} s")
        except (httpx.HTTPError, OSError) as error:
            return Attempt("again", str(error) or type(error).__name__)
        return Attempt(verdict_on(status), f"answered {status}")

    async def _post(self, target: Target, body: str, headers: Mapping[str, str]) -> int:
        """Return the status of the answer; its body is not read."""
        # A client for each: two names may share an address, and must not share a connection, whose certificate was
        # checked for one of them.
        async with httpx.AsyncClient(
            verify=self.trust,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(SEND_SECONDS, connect=CONNECT_SECONDS),
        ) as client:
            *others, last = target.addresses
            for address in others:
                try:
                    return await _post_to(client, target, address, body, headers)
                except (httpx.ConnectError, httpx.ConnectTimeout):  # the next one may be reachable
                    continue
            return await _post_to(client, target, last, body, headers)


async def _post_to(
    client: httpx.AsyncClient, target: Target, address: str, body: str, headers: Mapping[str, str]
) -> int:
    request = client.build_request(
        "POST",
        target.url.copy_with(host=address),
        content=body,
        headers={**headers, "Host": target.url.netloc.decode("ascii")},
        # The certificate must be the name's, not the address's.
        extensions={"sni_hostname": target.host},
    )
    response = await client.send(request, stream=True)
    await response.aclose()
    return response.status_code


def verdict_on(status: int) -> Verdict:
    """Return what an answer means: 2xx that it has arrived, 410 that nobody wants it any more."""
    if 200 <= status < 300:
        return "delivered"
    return "never" if status == _GONE else "again"


# All webhooks that are due: whose job has ended, and when to try again.

log = logging.getLogger(__name__)

BATCH, PER_HOST = 100, 25
"""Webhooks that are sent at once, to all and to one host: a slow one must not hold up the others."""

CLAIM_SECONDS = 60.0
GRACE_SECONDS = 60.0
"""How long after a wish its job may be missing: it is written down before the job is queued."""

MAX_DELIVERIES = 8
FIRST_PAUSE, PAUSE_FACTOR, JITTER = 5.0, 5.0, 0.2

Clock = Callable[[], datetime]


def pause_after(attempts: int, random: Random) -> float:
    """Return the seconds to wait after so many attempts: 5 s, 25 s, 2 min, …, 22 h, give or take a fifth.

    All eight attempts take about 27 hours.
    """
    jitter = random.uniform(1 - JITTER, 1 + JITTER)
    return float(FIRST_PAUSE * PAUSE_FACTOR ** (attempts - 1) * jitter)


def deliver_due(redis: Redis, sender: Sender, *, clock: Clock, random: Random) -> int:
    """Send the webhooks that are due, and write down what came of it.

    Args:
        redis: where jobs and callbacks are.
        sender: delivers.
        clock: the time, with a time zone.
        random: for the pauses, so that not all come back at once.

    Returns:
        How many attempts were made.

    Raises:
        RedisError: if Redis is away; what was sent may then be sent again.
    """
    now = clock()
    ready = list(islice(_ready(redis, now), BATCH))
    if not ready:
        return 0
    claim(redis, [callback for callback, _ in ready], until=now.timestamp() + CLAIM_SECONDS)
    attempts = asyncio.run(_send_all(sender, ready, now))
    for (callback, body), attempt in zip(ready, attempts, strict=True):
        _settle(redis, callback, body, attempt, clock=clock, random=random)
    return len(ready)


def _ready(redis: Redis, now: datetime) -> Iterator[tuple[Callback, str]]:
    """Give the callbacks that can be sent, each with its body; not too many to one host."""
    waiting = due(redis, now=now.timestamp())
    statuses = read_status(redis, (callback.job for callback in waiting))
    taken: Counter[str] = Counter()
    for callback in waiting:
        if taken[callback.host] == PER_HOST:
            continue
        body = callback.body or _body(redis, callback, statuses[callback.job], now)
        if body is not None:
            taken[callback.host] += 1
            yield callback, body


def _body(redis: Redis, callback: Callback, status: Status | None, now: datetime) -> str | None:
    """Return what is to be said of a callback's job, or None if it has not ended."""
    if status in FINISHED_STATUSES:
        job = fetch_job(redis, callback.job)
        # It may have been posted again since.
        if job is not None and status_of(job) in FINISHED_STATUSES:
            return news_of(callback, job, now=now)
    elif status is None and now.timestamp() - callback.since > GRACE_SECONDS:
        return news_of(callback, None, now=now)
    return None


async def _send_all(
    sender: Sender, ready: Sequence[tuple[Callback, str]], now: datetime
) -> list[Attempt]:
    return await asyncio.gather(*(sender.send(each, body, now=now) for each, body in ready))


def _settle(
    redis: Redis, callback: Callback, body: str, attempt: Attempt, *, clock: Clock, random: Random
) -> None:
    attempts = callback.attempts + 1
    if attempt.verdict == "again" and attempts < MAX_DELIVERIES:
        due_at = clock().timestamp() + pause_after(attempts, random)
        postpone(redis, callback, body=body, due_at=due_at)
        return
    forget(redis, callback)
    if attempt.verdict != "delivered":
        # Not the whole URL: its query may hold the receiver's own secrets.
        words = "job %s: gave up telling %s after %d attempts: %s"
        log.warning(words, callback.job, callback.host, attempts, attempt.reason)
