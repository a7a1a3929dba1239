"""What a client does, step by step, without doing it: generators that yield what to send and are sent the answers.

``Client`` and ``AsyncClient`` each perform the steps in their own way, and share all that is decided here.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

import httpx

from service.client import documents
from service.client.calls import Call, quoted
from service.client.documents import Job
from service.client.errors import NotFound, SemplesError, Unavailable, error_of
from service.client.listening import EventReader, OnProgress

log = logging.getLogger(__name__)

T = TypeVar("T")

WAIT_SECONDS = 20
"""How long a post waits for its job; what takes longer is followed by events, which keep a proxy's connection open."""
PING_SECONDS = 30.0
"""Longer than the pause between two signs of life of a connection with events."""
POSTS = 3
"""How often an image is posted whose job is gone before its mask was fetched."""
SIGNATURES = {"png": b"\x89PNG\r\n\x1a\n", "npz": b"PK"}
"""What files begin with: nothing else may end among masks."""
LONGEST_PAUSE = 600.0
LONGEST_BACKOFF = 30.0


@dataclass(frozen=True)
class Send:
    """A step: send a request and read its answer.

    Attributes:
        call: the request.
        feed: takes the parts of a good answer as they come, instead of their being kept.
        begin: called before the first part, of each try.
    """

    call: Call
    feed: Callable[[bytes], object] | None = None
    begin: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Pause:
    """A step: wait for so many seconds."""

    seconds: float


Answer: TypeAlias = httpx.Response | httpx.RequestError | None
"""What comes of a step: an answer, or why there is none; None of a pause."""
Flow: TypeAlias = Generator[Send | Pause, Answer, T]


@dataclass(frozen=True)
class Retries:
    """How often what may pass is tried again, and when.

    Attributes:
        most: tries after the first.
        random: a number in [0, 1), so that many clients do not come back in the same moment.
        patient_with: problems that count as no try, since a service that says them is well.
        now: the time, which a Retry-After may name.
    """

    most: int
    random: Callable[[], float]
    patient_with: frozenset[str] = frozenset()
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def pause(self, tried: int, error: SemplesError | None) -> Pause:
        """Return the pause before the next try: not before Retry-After, or growing from half a second to 30."""
        told = error.retry_after if isinstance(error, Unavailable) else None
        if told is None:
            longest = min(LONGEST_BACKOFF, 0.5 * 2 ** min(tried, 10))
            return Pause(longest * (1 + self.random()) / 2)
        return Pause(min(told, LONGEST_PAUSE) * (1 + self.random() / 4))


@dataclass(frozen=True)
class MaskedJob:
    """A finished job and its mask's file."""

    job: Job
    mask: bytes = field(repr=False)


def ask(step: Call | Send, retries: Retries) -> Flow[httpx.Response]:
    """Send a request until it is answered.

    Raises:
        SemplesError: if the answer is a problem; Unavailable once there were tries enough.
    """
    tried = 0
    while True:
        answer = yield (step if isinstance(step, Send) else Send(step))
        if answer is None:
            raise TypeError("expected an answer to what was sent, got none")
        error = error_of(answer, now=retries.now())
        if error is None and isinstance(answer, httpx.Response):
            return answer
        if error is None or not isinstance(error, Unavailable):
            raise error or TypeError("expected an answer")
        if tried == 0 < retries.most and isinstance(answer, httpx.RequestError):
            log.warning("%s; trying again, up to %d times", error, retries.most)
        counts = error.kind not in retries.patient_with
        if counts and tried == retries.most:
            raise error
        yield retries.pause(tried, error)
        tried += counts


def get(path: str, parse: Callable[[Any], T], retries: Retries, **query: object) -> Flow[T]:
    """Fetch a document."""
    return documents.read((yield from ask(Call("GET", path, query=query), retries)), parse)


def fetch(path: str, retries: Retries, **query: object) -> Flow[bytes]:
    """Fetch a file.

    Raises:
        SemplesError: if it is something else, as a page that a proxy shows in its place.
    """
    content = (yield from ask(Call("GET", path, query=query), retries)).content
    if not content.startswith(SIGNATURES[path.rpartition(".")[2]]):
        raise SemplesError(f"expected a file at {path}, got something else: is the URL right?")
    return content


def get_job(job_id: str, retries: Retries) -> Flow[Job]:
    """Say where a job stands."""
    return (yield from get(f"/jobs/{quoted(job_id)}", documents.job, retries))


def cancel(job_id: str, retries: Retries) -> Flow[Job | None]:
    """Take a job back; None if it was over, and is gone with its files."""
    answer = yield from ask(Call("DELETE", f"/jobs/{quoted(job_id)}"), retries)
    return documents.read(answer, documents.job) if answer.content else None


def follow(job_id: str, retries: Retries, on_progress: OnProgress | None) -> Flow[Job]:
    """Return a job once it has ended, whatever becomes of the connections meanwhile."""
    reader, silent = EventReader(on_progress), 0
    while True:
        job = yield from get_job(job_id, retries)
        if job.ended:
            return job
        heard = reader.count
        answer = yield Send(_events(job_id, reader.last_id), reader.feed, reader.begin)
        if not reader.ended:
            # Cut off, or turned away: the job itself says how it is, and bounds what may go wrong.
            silent = 0 if reader.count > heard else silent + 1
            error = error_of(answer, now=retries.now()) if answer is not None else None
            yield retries.pause(silent, error)


def _events(job_id: str, after: str | None) -> Call:
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
    return Call("GET", f"/jobs/{quoted(job_id)}/events", headers=headers, patience=PING_SECONDS)


def post(call: Call, retries: Retries, on_progress: OnProgress | None) -> Flow[MaskedJob]:
    """Post an image, follow its job to the end, and fetch its mask.

    Raises:
        JobFailed: if the job fails.
        JobCanceled: if somebody cancels it.
    """
    left = POSTS
    while True:
        left -= 1
        try:
            job = documents.read((yield from ask(call, retries)), documents.job)
            return (yield from _masked(job, retries, on_progress))
        except NotFound as error:
            # Equal posts share one job: others may have removed it, or the queue had no room for theirs.
            if error.kind != "unknown-job" or not left:
                raise


def result(job_id: str, retries: Retries, on_progress: OnProgress | None) -> Flow[MaskedJob]:
    """Follow a job to its end, and fetch its mask; raises as ``post`` does."""
    job = yield from get_job(job_id, retries)
    return (yield from _masked(job, retries, on_progress))


def _masked(job: Job, retries: Retries, on_progress: OnProgress | None) -> Flow[MaskedJob]:
    if not job.ended:
        job = yield from follow(job.id, retries, on_progress)
    job.finished()
    return MaskedJob(job, (yield from fetch(f"/jobs/{quoted(job.id)}/mask.png", retries)))


def wait_of(on_progress: OnProgress | None) -> int:
    """Return how long a post waits for its job: not at all where somebody wants to hear how it goes."""
    return WAIT_SECONDS if on_progress is None else 0


def tries(most: int) -> Retries:
    """Return retries that many clients do not make in the same moment.

    Raises:
        ValueError: if there are fewer than none.
    """
    if most < 0:
        raise ValueError(f"expected 0 retries or more, got {most}")
    return Retries(most, random.random)


def patient(retries: Retries) -> Retries:
    """Return retries that wait for room as long as it takes."""
    return replace(retries, patient_with=frozenset({"queue-full", "rate-limited"}))
