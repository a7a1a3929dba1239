"""One webhook: what it says of a job, and one attempt to deliver it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import httpx
from pydantic import Field
from rq.job import Job

from worker.callback_url import (
    CallbackRefusedError,
    HostUnknownError,
    Resolve,
    Target,
    find_target,
    resolve_host,
)
from worker.callbacks import Callback
from worker.links import job_links
from worker.outcome import Status, failure_of, request_of, status_of
from worker.protocol import JobFailure, ModelRef, Record, Task
from worker.signing import signed_headers

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
        secret: signs them; see ``worker.signing``.
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
