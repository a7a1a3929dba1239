"""The client of programs that await."""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Protocol, Self, TypeAlias, TypeVar, Unpack, cast

import anyio
import httpx
from anyio.from_thread import start_blocking_portal

from models.data.classes import Sample
from service.client import types
from service.client.errors import (
    BadImage,
    JobCanceled,
    JobFailed,
    NotFound,
    SemplesError,
    Unavailable,
    UnknownLabel,
    error_of,
)
from service.client.folder import Outcome, OutputFolder, plan
from service.client.types import (
    UNPACK_SECONDS,
    AsyncResult,
    Batch,
    Call,
    FinishedMask,
    ImageLike,
    Job,
    Mask,
    Model,
    PhotoOptions,
    PseudoMaskOptions,
    Result,
    SegmentOptions,
    Thresholds,
    batch_call,
    checked,
    image_bytes,
    pseudo_mask_call,
    quoted,
    segment_call,
)

# Where a service is and who asks: what httpx's clients are made with.

TIMEOUT_SECONDS: Final = 30.0
RETRIES: Final = 6
"""About half a minute without a word from the service."""


def http_options(url: str, key: str | None) -> dict[str, Any]:
    """Return what both of httpx's clients are made with.

    Raises:
        ValueError: if the URL or the key cannot be one.
    """
    return {
        "base_url": base_url(url),
        "headers": {"Accept": "application/json", **key_headers(key)},
        # How many requests are made at once is the caller's choice, and decided there alone.
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=100),
    }


def base_url(url: str) -> httpx.URL:
    """Check where a service is.

    Raises:
        ValueError: if it is no http or https URL, or holds a password, which would end in messages.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"expected the service's URL, got {error}") from error
    if parsed.userinfo:
        raise ValueError(
            "expected a URL without user and password; a key goes into its own argument"
        )
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"expected the service's URL, http:// or https://, got {url!r}")
    return parsed


def key_headers(key: str | None) -> dict[str, str]:
    """Return the headers that show a key.

    Raises:
        ValueError: if it cannot be one; it is not quoted.
    """
    if key is None:
        return {}
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError("expected a key of printable ASCII without spaces, got another one")
    return {"Authorization": f"Bearer {key}"}


# Server-sent events out of the bytes of an answer.

OnProgress = Callable[[str, float], None]
"""Told a stage's name and the fraction of all work done: "queued" and "running" with 0 and, last, the status with 1."""

END = "end"


class EventReader:
    """Reads a job's events, over several connections if need be.

    Args:
        on_progress: told of each event; what it raises ends the listening.

    Attributes:
        last_id: of the last event that was read whole, to go on from; None before the first.
        ended: whether the last event of all was read.
        count: how many were read.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        self.last_id: str | None = None
        self.ended = False
        self.count = 0
        self._on_progress = on_progress
        self._rest = b""
        self._fields: dict[str, str] = {}

    def begin(self) -> None:
        """Forget what a broken connection left half said."""
        self._rest = b""
        self._fields = {}
        self.ended = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._take(line.rstrip(b"\r").decode(errors="replace"))

    def _take(self, line: str) -> None:
        if line:
            name, _, value = line.partition(":")
            if name:  # else a comment, which keeps the connection open
                self._fields[name] = value.removeprefix(" ")
            return
        fields, self._fields = self._fields, {}
        if "event" in fields and "data" in fields:
            self.count += 1
            self._tell(fields["event"], fields["data"])
            if fields["event"] == END:
                self.ended = True
            elif "id" in fields:
                self.last_id = fields["id"]

    def _tell(self, event: str, data: str) -> None:
        if self._on_progress is None:
            return
        said = json.loads(data)
        if event == "progress":
            self._on_progress(str(said["stage"]), float(said["fraction"]))
        else:
            self._on_progress(str(said["status"]), float(event == END))


# What a client does, step by step, without doing it: generators that yield what to send and are sent the answers.
#
# ``Client`` and ``AsyncClient`` each perform the steps in their own way, and share all that is decided here.

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
    return types.read((yield from ask(Call("GET", path, query=query), retries)), parse)


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
    return (yield from get(f"/jobs/{quoted(job_id)}", types.job, retries))


def cancel(job_id: str, retries: Retries) -> Flow[Job | None]:
    """Take a job back; None if it was over, and is gone with its files."""
    answer = yield from ask(Call("DELETE", f"/jobs/{quoted(job_id)}"), retries)
    return types.read(answer, types.job) if answer.content else None


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
            job = types.read((yield from ask(call, retries)), types.job)
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


# The clients' methods, as flows: what is sent, and what is made of the answers.

ArchiveFormat = Literal["voc", "coco", "cvat"]

BATCH_PAUSES: Final = (1.0, 2.0, 5.0, 10.0)
"""Seconds between two looks at a batch; the last one again and again."""


def pseudo_mask(
    image: ImageLike,
    labels: str | Sequence[str],
    options: PhotoOptions,
    retries: Retries,
    on_progress: OnProgress | None,
) -> Flow[MaskedJob]:
    """Make a mask of an image from the labels of what it shows."""
    call = pseudo_mask_call(image_bytes(image), labels, options, wait=wait_of(on_progress))
    return (yield from post(call, retries, on_progress))


def segment(
    image: ImageLike, options: SegmentOptions, retries: Retries, on_progress: OnProgress | None
) -> Flow[MaskedJob]:
    """Make a mask of whatever an image shows."""
    call = segment_call(image_bytes(image), options, wait=wait_of(on_progress))
    return (yield from post(call, retries, on_progress))


def rethreshold(job: str | Mask, thresholds: Thresholds, retries: Retries) -> Flow[Mask]:
    """Decide a finished job's mask anew."""
    job_id = job.job_id if isinstance(job, Mask) else job
    chosen = checked(thresholds, Thresholds)
    return Mask(job_id, (yield from fetch(f"/jobs/{quoted(job_id)}/mask.png", retries, **chosen)))


def file(masked: MaskedJob | FinishedMask, name: str, retries: Retries) -> Flow[bytes]:
    """Fetch one more file of a job."""
    return (yield from fetch(f"/jobs/{quoted(masked.job.id)}/{name}", retries))


def models(retries: Retries) -> Flow[tuple[Model, ...]]:
    """List the models."""
    return (yield from get("/models", types.models, retries))


def model(name: str, retries: Retries) -> Flow[Model]:
    """Describe one model."""
    return (yield from get(f"/models/{quoted(name)}", types.model, retries))


def chosen_model(name: str | None, retries: Retries) -> Flow[Model]:
    """Return the model of a name, or the one that is taken without any.

    Raises:
        ValueError: if there is none.
    """
    known = yield from models(retries)
    found = [each for each in known if (each.default if name is None else each.name == name)]
    if not found:
        names = ", ".join(each.name for each in known) or "none"
        raise ValueError(f"expected a model of the service ({names}), got {name or 'no default'}")
    return found[0]


def submit_batch(archive: str | Path, options: PseudoMaskOptions, retries: Retries) -> Flow[Batch]:
    """Post a zip of photos and labels."""
    answer = yield from ask(batch_call(Path(archive), options), retries)
    return types.read(answer, types.batch)


def batch_status(batch_id: str, retries: Retries) -> Flow[Batch]:
    """Say where a batch stands."""
    return (yield from get(f"/batches/{quoted(batch_id)}", types.batch, retries))


def wait_for_batch(batch_id: str, retries: Retries) -> Flow[Batch]:
    """Return a batch once it has ended."""
    looks = 0
    while True:
        batch = yield from batch_status(batch_id, retries)
        if batch.ended:
            return batch
        yield Pause(BATCH_PAUSES[min(looks, len(BATCH_PAUSES) - 1)])
        looks += 1


def cancel_batch(batch_id: str, retries: Retries) -> Flow[None]:
    """Cancel what is not done of a batch; forget one that has ended."""
    yield from ask(Call("DELETE", f"/batches/{quoted(batch_id)}"), retries)


def batch_items(
    batch_id: str, status: str | None, after: Any, retries: Retries
) -> Flow[tuple[list[dict[str, Any]], Any]]:
    """Return a page of a batch's photos, and what the next page comes after; None if there is none."""
    path = f"/batches/{quoted(batch_id)}/items"
    return (yield from get(path, _page, retries, status=status, after=after))


def _page(said: Any) -> tuple[list[dict[str, Any]], Any]:
    return list(said["items"]), said.get("next")


def batch_report(batch_id: str, retries: Retries) -> Flow[dict[str, Any]]:
    """Return what a batch came to."""
    return (yield from get(f"/batches/{quoted(batch_id)}/report", dict[str, Any], retries))


def save_archive(
    batch_id: str, path: str | Path, format: ArchiveFormat, retries: Retries
) -> Flow[Path]:
    """Write a batch's masks as a zip, whole or not at all; it may be larger than memory.

    Raises:
        OSError: if it cannot be written.
    """
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    # Nothing comes before all is packed.
    path_of = f"/batches/{quoted(batch_id)}/archive.zip"
    call = Call("GET", path_of, query={"format": format}, patience=UNPACK_SECONDS)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as opened:

            def begin() -> None:
                opened.seek(0)
                opened.truncate()

            yield from ask(Send(call, opened.write, begin), retries)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


# A whole folder of photos through a service, several in flight.

OnPhoto = Callable[[int, int, int], None]
"""Told how many photos are done, those from before with them, how many have failed, and how many there are."""


class Run(Protocol):
    """Performs flows, any number at once."""

    async def __call__(self, flow: Flow[T], /) -> T:
        """Return what a flow returns, or raise what it raises."""
        ...


@dataclass(frozen=True)
class Sending:
    """How photos are sent.

    Attributes:
        run: performs what is to be sent.
        call: makes the post of a photo from its bytes.
        retries: for all that may pass.
        save_scores: whether to fetch the scores as well.
    """

    run: Run
    call: Callable[[Sample, bytes], Call]
    retries: Retries
    save_scores: bool

    async def send(self, sample: Sample, folder: OutputFolder) -> str:
        """Make one mask and keep it; return why there is none, or nothing.

        Raises:
            SemplesError: if that has nothing to do with the photo.
            ValueError: if the service has another model by now.
            OSError: if the folder cannot be written.
        """
        try:
            photo = sample.path.read_bytes()
        except OSError as error:
            return f"cannot read the file: {error.strerror}"
        try:
            made, scores = await self.run(self._made(self.call(sample, photo)))
        except SemplesError as error:
            if is_the_photos(error):
                return str(error)
            raise
        folder.keep(sample, made.job, made.mask, scores)
        return ""

    def _made(self, call: Call) -> Flow[tuple[MaskedJob, bytes | None]]:
        made = yield from post(call, self.retries, None)
        scores = file(made, "scores.npz", self.retries)
        return made, (yield from scores) if self.save_scores else None


async def send_photos(
    folder: OutputFolder, sending: Sending, *, concurrency: int, on_photo: OnPhoto
) -> None:
    """Send the photos that a folder lacks, and keep what comes back.

    What is wrong with one photo is noted; what is wrong with the service, or with all photos alike, ends it.

    Args:
        folder: for the masks.
        sending: how.
        concurrency: photos in flight.
        on_photo: called after each photo, and once before the first.

    Raises:
        SemplesError: if the service cannot be reached or refuses what has nothing to do with the photo.
        ValueError: if the service has another model by now.
        OSError: if the folder cannot be written.
    """
    errors: list[Exception] = []

    async def work() -> None:
        try:
            for sample in folder.todo:  # which all workers take from
                reason = await sending.send(sample, folder)
                if reason:
                    folder.fail(sample, reason)
                on_photo(folder.done, folder.failed, folder.total)
        except Exception as error:
            # Told as it is, not in a group: those who call expect the errors that they know.
            errors.append(error)
            group.cancel_scope.cancel()

    on_photo(folder.done, folder.failed, folder.total)
    async with anyio.create_task_group() as group:
        for _ in range(concurrency):
            group.start_soon(work)
    if errors:
        raise errors[0]


def is_the_photos(error: SemplesError) -> bool:
    """Whether an error is about one photo, so that the next one may do; for all we know 500 and 408 are."""
    own = isinstance(error, BadImage | JobFailed | JobCanceled | UnknownLabel)
    return own or error.status in (408, 500) or error.kind == "unknown-job"


class AsyncClient:
    """A service's client whose methods are awaited; else as ``Client``, arguments and errors too.

    ``await aclose()`` it, or use it in an ``async with``. Calls of ``on_progress`` and ``on_photo`` should not block.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._retries = tries(retries)
        self._timeout = timeout
        self._sleep = sleep
        self._http = httpx.AsyncClient(transport=transport, **http_options(url, key))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def pseudo_mask(
        self,
        image: ImageLike,
        labels: str | Sequence[str],
        *,
        on_progress: OnProgress | None = None,
        **options: Unpack[PhotoOptions],
    ) -> AsyncResult:
        """Make a mask of an image from the labels of what it shows."""
        flow = pseudo_mask(image, labels, options, self._retries, on_progress)
        return self._result(await self._run(flow))

    async def segment(
        self,
        image: ImageLike,
        *,
        on_progress: OnProgress | None = None,
        **options: Unpack[SegmentOptions],
    ) -> AsyncResult:
        """Make a mask of whatever an image shows, with a model that has a segmenter."""
        flow = segment(image, options, self._retries, on_progress)
        return self._result(await self._run(flow))

    async def job(self, job_id: str) -> Job:
        """Say where a job stands."""
        return await self._run(get_job(job_id, self._retries))

    async def result(self, job_id: str, *, on_progress: OnProgress | None = None) -> AsyncResult:
        """Return what comes of a job, once it has ended."""
        return self._result(await self._run(result(job_id, self._retries, on_progress)))

    async def cancel(self, job_id: str) -> Job | None:
        """Take a job back; None if it was over or is unknown: then it is gone, files and all."""
        return await self._run(cancel(job_id, self._retries))

    async def rethreshold(self, job: str | Mask, **thresholds: Unpack[Thresholds]) -> Mask:
        """Decide a finished job's mask anew by other thresholds."""
        return await self._run(rethreshold(job, thresholds, self._retries))

    async def models(self) -> tuple[Model, ...]:
        """List the models."""
        return await self._run(models(self._retries))

    async def model(self, name: str) -> Model:
        """Describe one model."""
        return await self._run(model(name, self._retries))

    async def batch(
        self,
        images: str | Path,
        labels: str | Path,
        output: str | Path,
        *,
        concurrency: int = 4,
        save_scores: bool = False,
        on_photo: OnPhoto | None = None,
        **options: Unpack[PseudoMaskOptions],
    ) -> Outcome:
        """Make the masks of a folder of photos, several in flight, laid out as ``semples make-pseudo-masks`` does.

        Interrupted or killed, it goes on when it is called again: what is done is not sent again. What is wrong with
        one photo is noted in ``summary.json`` and in what is returned, and ends nothing.

        Args:
            images: folder of photos.
            labels: a labels.csv, or whatever else that command takes.
            output: folder for masks/, classes.txt, results.jsonl and, at the end, summary.json.
            concurrency: photos in flight.
            save_scores: keep scores/ too, to choose thresholds later.
            on_photo: told how many photos are done, how many have failed, and how many there are.
            options: as of ``pseudo_mask``.

        Raises:
            SemplesError: if the service cannot be reached or does not let us in.
            ValueError: if labels, photos and model do not fit together, or the output was made with another model or
                other options.
            OSError: if a file other than a photo cannot be read or written.
        """
        if concurrency < 1:
            raise ValueError(f"expected at least one photo in flight, got {concurrency}")
        model = await self._run(chosen_model(options.get("model"), self._retries))
        what = plan(
            (Path(images), Path(labels), Path(output)),
            model,
            save_scores=save_scores,
            options=options,
        )
        chosen: PseudoMaskOptions = {**options, "model": model.name}

        def call(sample: Sample, photo: bytes) -> Call:
            return pseudo_mask_call(photo, what.labels(sample), chosen, wait=WAIT_SECONDS)

        with OutputFolder(what) as folder:
            sending = Sending(self._run, call, patient(self._retries), save_scores)
            await send_photos(
                folder, sending, concurrency=concurrency, on_photo=on_photo or _say_nothing
            )
            return folder.finish()

    async def submit_batch(
        self, archive: str | Path, **options: Unpack[PseudoMaskOptions]
    ) -> Batch:
        """Post a zip of photos and their labels; the same zip and options again are the same batch, which goes on."""
        return await self._run(submit_batch(archive, options, self._retries))

    async def batch_status(self, batch_id: str) -> Batch:
        """Say where a batch stands."""
        return await self._run(batch_status(batch_id, self._retries))

    async def wait_for_batch(self, batch_id: str) -> Batch:
        """Return a batch once it has ended."""
        return await self._run(wait_for_batch(batch_id, self._retries))

    async def batch_items(
        self, batch_id: str, *, status: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield a batch's photos, or those of a status."""
        after: Any = None
        while True:
            page = batch_items(batch_id, status, after, self._retries)
            items, after = await self._run(page)
            for item in items:
                yield item
            if after is None:
                return

    async def batch_report(self, batch_id: str) -> dict[str, Any]:
        """Return what a batch came to, in JSON's types."""
        return await self._run(batch_report(batch_id, self._retries))

    async def save_archive(
        self, batch_id: str, path: str | Path, *, format: ArchiveFormat = "voc"
    ) -> Path:
        """Write the masks of a batch that has ended as a zip; returns its path."""
        return await self._run(save_archive(batch_id, path, format, self._retries))

    async def cancel_batch(self, batch_id: str) -> None:
        """Cancel what is not done of a batch; forget one that has ended."""
        await self._run(cancel_batch(batch_id, self._retries))

    def _result(self, made: MaskedJob) -> AsyncResult:
        return AsyncResult(
            made.job.id,
            made.mask,
            made.job,
            lambda name: self._run(file(made, name, self._retries)),
        )

    async def _run(self, flow: Flow[T]) -> T:
        answer: Answer = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as stop:
                result: T = stop.value
                return result
            answer = await self._perform(step)

    async def _perform(self, step: Send | Pause) -> Answer:
        if isinstance(step, Pause):
            await self._sleep(step.seconds)
            return None
        try:
            with step.call.request(self._http, self._timeout) as request:
                response = await self._http.send(request, stream=True)
                try:
                    if step.feed is None or not response.is_success:
                        await response.aread()
                    else:
                        step.begin()
                        async for chunk in response.aiter_bytes():
                            step.feed(chunk)
                finally:
                    await response.aclose()
        except httpx.RequestError as error:
            return error
        return response


def _say_nothing(done: int, failed: int, total: int) -> None:
    """Take what ``on_photo`` would."""


# The client of ordinary programs.


class Client:
    """A service's client. May be shared by threads; ``close()`` it, or use it in a ``with``.

    What has to do with the moment (no connection, 429, 502 to 504) is tried again, not before the service's
    Retry-After. That does no harm: the same image, labels and options are the same job.

    Args:
        url: where the service is; may have a path.
        key: of the API, if it asks for one. It is sent to this service and shown nowhere.
        timeout: seconds that the service may stay silent, beyond what it is asked to wait.
        retries: how often one request is tried again.
        transport: of httpx, in place of its own.
        sleep: waits for so many seconds.

    All methods raise SemplesError, or what it is the base of: Unauthorized, NotFound, InvalidRequest (BadImage,
    UnknownLabel), Unavailable, JobFailed, JobCanceled.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._retries = tries(retries)
        self._timeout = timeout
        self._sleep = sleep
        self._http = httpx.Client(transport=transport, **http_options(url, key))
        # Not a partial, whose repr would show the key.
        self._beside: Callable[[], AsyncClient] = lambda: AsyncClient(
            url, key=key, timeout=timeout, retries=retries
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def pseudo_mask(
        self,
        image: types.ImageLike,
        labels: str | Sequence[str],
        *,
        on_progress: OnProgress | None = None,
        **options: Unpack[types.PhotoOptions],
    ) -> Result:
        """Make a mask of an image from the labels of what it shows; returns when it is done, however long that takes.

        Args:
            image: a path, a file's bytes, a Pillow image, or uint8 pixels.
            labels: names or synonyms of the model's classes.
            on_progress: told how it goes.
            options: model, vocabulary, refine, background_threshold or background_power, min_confidence.

        Raises:
            JobFailed: if the job fails.
            JobCanceled: if somebody cancels it.
            TypeError: if an option or the image is none.
            ValueError: if pixels have another shape or type, or there is no label.
            OSError: if the file cannot be read.
        """
        flow = pseudo_mask(image, labels, options, self._retries, on_progress)
        return self._result(self._run(flow))

    def segment(
        self,
        image: types.ImageLike,
        *,
        on_progress: OnProgress | None = None,
        **options: Unpack[types.SegmentOptions],
    ) -> Result:
        """Make a mask of whatever an image shows, with a model that has a segmenter; raises as ``pseudo_mask``."""
        flow = segment(image, options, self._retries, on_progress)
        return self._result(self._run(flow))

    def job(self, job_id: str) -> Job:
        """Say where a job stands."""
        return self._run(get_job(job_id, self._retries))

    def result(self, job_id: str, *, on_progress: OnProgress | None = None) -> Result:
        """Return what comes of a job, once it has ended; raises as ``pseudo_mask``."""
        return self._result(self._run(result(job_id, self._retries, on_progress)))

    def cancel(self, job_id: str) -> Job | None:
        """Take a job back; None if it was over or is unknown: then it is gone, files and all."""
        return self._run(cancel(job_id, self._retries))

    def rethreshold(self, job: str | Mask, **thresholds: Unpack[types.Thresholds]) -> Mask:
        """Decide a finished job's mask anew by other thresholds, which the service does from its scores.

        Args:
            job: its id, or its result.
            thresholds: background_threshold or background_power, min_confidence; what is not named stays.
        """
        return self._run(rethreshold(job, thresholds, self._retries))

    def models(self) -> tuple[Model, ...]:
        """List the models."""
        return self._run(models(self._retries))

    def model(self, name: str) -> Model:
        """Describe one model; its document has ``nearest_nouns``, what its background prompts learned."""
        return self._run(model(name, self._retries))

    def batch(
        self,
        images: str | Path,
        labels: str | Path,
        output: str | Path,
        *,
        concurrency: int = 4,
        save_scores: bool = False,
        on_photo: OnPhoto | None = None,
        **options: Unpack[types.PseudoMaskOptions],
    ) -> Outcome:
        """Make the masks of a folder, as ``AsyncClient.batch``: in a thread of its own, which calls ``on_photo``.

        It has connections of its own, never this client's ``transport``; an interrupt here ends it.
        """

        async def send() -> Outcome:
            async with self._beside() as client:
                return await client.batch(
                    *(images, labels, output),
                    concurrency=concurrency,
                    save_scores=save_scores,
                    on_photo=on_photo,
                    **options,
                )

        with start_blocking_portal() as portal:
            return portal.call(send)

    def submit_batch(
        self, archive: str | Path, **options: Unpack[types.PseudoMaskOptions]
    ) -> Batch:
        """Post a zip of photos and their labels; the same zip and options again are the same batch, which goes on.

        Raises:
            OSError: if the zip cannot be read.
        """
        return self._run(submit_batch(archive, options, self._retries))

    def batch_status(self, batch_id: str) -> Batch:
        """Say where a batch stands."""
        return self._run(batch_status(batch_id, self._retries))

    def wait_for_batch(self, batch_id: str) -> Batch:
        """Return a batch once it has ended."""
        return self._run(wait_for_batch(batch_id, self._retries))

    def batch_items(self, batch_id: str, *, status: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield a batch's photos, or those of a status: number, image, labels, status, job, problem."""
        after: Any = None
        while True:
            page = batch_items(batch_id, status, after, self._retries)
            items, after = self._run(page)
            yield from items
            if after is None:
                return

    def batch_report(self, batch_id: str) -> dict[str, Any]:
        """Return what a batch came to, in JSON's types."""
        return self._run(batch_report(batch_id, self._retries))

    def save_archive(
        self, batch_id: str, path: str | Path, *, format: ArchiveFormat = "voc"
    ) -> Path:
        """Write the masks of a batch that has ended as a zip; returns its path.

        Raises:
            OSError: if it cannot be written.
        """
        return self._run(save_archive(batch_id, path, format, self._retries))

    def cancel_batch(self, batch_id: str) -> None:
        """Cancel what is not done of a batch; forget one that has ended."""
        self._run(cancel_batch(batch_id, self._retries))

    def _result(self, made: MaskedJob) -> Result:
        return Result(
            made.job.id,
            made.mask,
            made.job,
            lambda name: self._run(file(made, name, self._retries)),
        )

    def _run(self, flow: Flow[T]) -> T:
        answer: Answer = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as stop:
                return cast("T", stop.value)
            answer = self._perform(step)

    def _perform(self, step: Send | Pause) -> Answer:
        if isinstance(step, Pause):
            self._sleep(step.seconds)
            return None
        try:
            with (
                step.call.request(self._http, self._timeout) as request,
                closing(self._http.send(request, stream=True)) as response,
            ):
                if step.feed is None or not response.is_success:
                    response.read()
                else:
                    step.begin()
                    for chunk in response.iter_bytes():
                        step.feed(chunk)
        except httpx.RequestError as error:
            return error
        return response
