"""Delivery of webhooks: payload, signature after the Standard Webhooks specification, attempts and back-off."""

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
from typing import Final, Literal

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
from worker.webhooks.store import Subscription, claim, delete, due, reschedule
from worker.webhooks.urls import (
    CallbackRefusedError,
    HostUnknownError,
    Resolve,
    Target,
    find_target,
    resolve_host,
)

MAX_AT_ONCE: Final = 100
MAX_PER_HOST: Final = 25
"""Webhooks that are sent at once to one host: a slow host must not delay the others."""

CLAIM_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 60.0
"""How long a subscription's job may be unknown: it is written before the job is queued."""

MAX_DELIVERIES: Final = 8
"""All of them take about 27 hours; see ``_retry_delay``."""
JITTER: Final = 0.2
_FIRST_DELAY, _DELAY_FACTOR = 5.0, 5.0

SEND_SECONDS: Final = 10.0
_CONNECT_SECONDS: Final = 3.0
_HTTP_GONE: Final = 410

_SECRET_PREFIX: Final = "whsec_"
_MIN_SECRET_BYTES, _MAX_SECRET_BYTES = 24, 64

log = logging.getLogger(__name__)


class _JobPayload(Record):
    """How a job ended; its whole document is at the link ``self``."""

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


class _Payload(Record):
    """The body of a webhook: ``job.finished``, ``job.failed``, ``job.canceled`` or ``job.gone``."""

    type: str = Field(pattern=r"job\.[a-z]+")
    timestamp: datetime
    data: _JobPayload


@dataclass(frozen=True)
class _DeliveryResult:
    """Result of one attempt: delivered, to be retried or rejected for good, and the reason for the log."""

    outcome: Literal["delivered", "retry", "rejected"]
    reason: str


@dataclass(frozen=True)
class Sender:
    """Sends webhooks.

    Attributes:
        secret: signs them; see ``parse_secret``.
        allow_private: whether they may go to addresses outside the internet.
        resolve: finds a host's addresses.
        trust: certificates that are trusted.
    """

    secret: bytes = field(repr=False)
    allow_private: bool = False
    resolve: Resolve = resolve_host
    trust: ssl.SSLContext = field(default_factory=httpx.create_ssl_context)

    async def send(self, subscription: Subscription, body: str, *, now: datetime) -> _DeliveryResult:
        """Make one attempt of at most ``SEND_SECONDS``; an error of the network or the recipient is a result.

        The URL is checked again, and the connection goes to an address that was checked.
        """
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "semples",
            **_sign(self.secret, subscription.message, body, now=now),
        }
        try:
            # httpx's timeouts bound single steps only, and a recipient could take many short ones.
            async with asyncio.timeout(SEND_SECONDS):
                target = await find_target(subscription.to.url, allow_private=self.allow_private, resolve=self.resolve)
                status = await self._post(target, body, headers)
        except HostUnknownError as error:
            return _DeliveryResult("retry", str(error))
        except CallbackRefusedError as error:
            return _DeliveryResult("rejected", str(error))
        except TimeoutError:
            return _DeliveryResult("retry", f"no answer within {SEND_SECONDS:.0f} s")
        except (httpx.HTTPError, OSError) as error:
            return _DeliveryResult("retry", str(error) or type(error).__name__)
        reason = f"answered {status}"
        if 200 <= status < 300:
            return _DeliveryResult("delivered", reason)
        return _DeliveryResult("rejected" if status == _HTTP_GONE else "retry", reason)

    async def _post(self, target: Target, body: str, headers: Mapping[str, str]) -> int:
        """Return the status of the answer; its body is not read."""
        # A client for each: two names may share an address, and must not share a connection, whose certificate was
        # checked for one of them.
        async with httpx.AsyncClient(
            verify=self.trust,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(SEND_SECONDS, connect=_CONNECT_SECONDS),
        ) as client:
            *others, last = target.addresses
            for address in others:
                try:
                    return await _post_to(client, target, address, body, headers)
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    continue  # the next address may be reachable
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


def parse_secret(text: str) -> bytes:
    """Return the bytes of a secret, which is ``whsec_`` and base64.

    Raises:
        ValueError: if it has another form or length; the message does not repeat it.
    """
    try:
        # The library's own decoder skips what is not base64, and would accept a passphrase.
        secret = base64.b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    right_size = _MIN_SECRET_BYTES <= len(secret) <= _MAX_SECRET_BYTES
    if not text.startswith(_SECRET_PREFIX) or not right_size:
        raise ValueError(
            f"expected as webhook secret {_SECRET_PREFIX} and the base64 of {_MIN_SECRET_BYTES} to "
            f"{_MAX_SECRET_BYTES} bytes, got {len(text)} characters that are not that"
        )
    return secret


def _sign(secret: bytes, message: str, body: str, *, now: datetime) -> dict[str, str]:
    """Return the headers that prove a body's origin."""
    seconds = datetime.fromtimestamp(int(now.timestamp()), tz=now.tzinfo)
    return {
        "webhook-id": message,
        "webhook-timestamp": str(int(seconds.timestamp())),
        "webhook-signature": Webhook(secret).sign(message, seconds, body),
    }


def _build_payload(subscription: Subscription, job: Job | None, *, now: datetime) -> str:
    """Return the body of the webhook on a job that has ended, or is gone (None)."""
    link = f"{subscription.to.root}/jobs/{subscription.job}"
    data = _JobPayload(id=subscription.job, status="gone", links={"self": link})
    if job is not None:
        request, status = request_of(job), status_of(job)
        data = _JobPayload(
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
    payload = _Payload(type=f"job.{data.status}", timestamp=now, data=data)
    return payload.model_dump_json(exclude_none=True)


def deliver_due(redis: Redis, sender: Sender, *, clock: Callable[[], datetime], random: Random) -> int:
    """Send the webhooks that are due and record the results; return the number of attempts.

    Args:
        redis: where jobs and subscriptions are.
        sender: sends them.
        clock: the time, with a time zone.
        random: spreads the retries.

    Raises:
        RedisError: if Redis does not answer; what was sent may then be sent again.
    """
    now = clock()
    ready = list(islice(_ready(redis, now), MAX_AT_ONCE))
    if not ready:
        return 0
    until = now.timestamp() + CLAIM_SECONDS
    claim(redis, [subscription for subscription, _ in ready], until=until)
    results = asyncio.run(_send_all(sender, ready, now))
    for (subscription, body), result in zip(ready, results, strict=True):
        attempts = subscription.attempts + 1
        if result.outcome == "retry" and attempts < MAX_DELIVERIES:
            due_at = clock().timestamp() + _retry_delay(attempts, random)
            reschedule(redis, subscription, body=body, due_at=due_at)
            continue
        delete(redis, subscription)
        if result.outcome != "delivered":
            # Not the whole URL: its query may hold the recipient's own secrets.
            message = "job %s: webhook to %s given up after %d attempts: %s"
            log.warning(message, subscription.job, subscription.host, attempts, result.reason)
    return len(ready)


def _retry_delay(attempts: int, random: Random) -> float:
    """Return the seconds until the next attempt: 5 s, 25 s, 2 min, …, 22 h, each ± 20 %."""
    jitter = random.uniform(1 - JITTER, 1 + JITTER)
    return float(_FIRST_DELAY * _DELAY_FACTOR ** (attempts - 1) * jitter)


async def _send_all(sender: Sender, ready: Sequence[tuple[Subscription, str]], now: datetime) -> list[_DeliveryResult]:
    return await asyncio.gather(*(sender.send(each, body, now=now) for each, body in ready))


def _ready(redis: Redis, now: datetime) -> Iterator[tuple[Subscription, str]]:
    """Yield the subscriptions that can be sent, each with its body; at most ``MAX_PER_HOST`` to a host."""
    subscriptions = due(redis, now=now.timestamp())
    statuses = read_status(redis, (each.job for each in subscriptions))
    by_host: Counter[str] = Counter()
    for each in subscriptions:
        if by_host[each.host] == MAX_PER_HOST:
            continue
        body = each.body or _body(redis, each, statuses[each.job], now)
        if body is not None:
            by_host[each.host] += 1
            yield each, body


def _body(redis: Redis, subscription: Subscription, status: Status | None, now: datetime) -> str | None:
    """Return a new body, or None if the job has not ended."""
    if status in FINISHED_STATUSES:
        job = fetch_job(redis, subscription.job)
        # It may have been posted again since.
        if job is not None and status_of(job) in FINISHED_STATUSES:
            return _build_payload(subscription, job, now=now)
    elif status is None and now.timestamp() - subscription.since > GRACE_SECONDS:
        return _build_payload(subscription, None, now=now)
    return None
