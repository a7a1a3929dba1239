"""The clients of the service: ``AsyncClient`` holds all logic, ``Client`` runs it in a thread of its own."""

from __future__ import annotations

import json
import logging
import os
import random
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import ExitStack, aclosing, asynccontextmanager
from copy import copy
from datetime import UTC, datetime
from functools import partial, wraps
from pathlib import Path
from threading import get_ident
from typing import Any, BinaryIO, Concatenate, Final, Literal, ParamSpec, Self, TypeVar, cast
from urllib.parse import quote
from weakref import finalize

import anyio
import httpx
from anyio.from_thread import start_blocking_portal
from anyio.to_thread import run_sync
from httpx_sse import EventSource, ServerSentEvent

from models.data.classes import Sample, Vocabulary
from models.data.labels import read_folder
from models.data.mask_folder import Outcome
from models.inference.masks import fill_defaults
from models.messages import without_secrets
from service.client.errors import NotFound, SemplesError, Unavailable, error_of
from service.client.folder import FolderJob, Made, OnPhoto
from service.client.types import (
    AsyncResult,
    Batch,
    ImageLike,
    Job,
    Mask,
    Model,
    Result,
    image_bytes,
)

ArchiveFormat = Literal["voc", "coco", "cvat"]
OnProgress = Callable[[str, float], None]
"""Called with a stage and the fraction of all work done: "queued" and "running" with 0, last the status with 1."""

TIMEOUT_SECONDS: Final = 30.0
RETRIES: Final = 6  # about half a minute without any answer
WAIT_SECONDS: Final = 20  # of a post for its job; longer jobs are followed by events
_PING_SECONDS: Final = 30.0  # longer than the service's pause between two events or pings
_UNPACK_SECONDS: Final = 600.0  # that the service may take to check or pack a zip before it answers
_POSTS: Final = 3  # of one image, if its job is deleted before its mask was fetched
_BATCH_PAUSES: Final = (1.0, 2.0, 5.0, 10.0)  # between two polls of a batch; the last one repeats
_LONGEST_RETRY_AFTER: Final = 600.0
_LONGEST_BACKOFF: Final = 30.0
_BUSY: Final = frozenset({"queue-full", "rate-limited"})
_END: Final = "end"
_EVENTS: Final = frozenset({"status", "progress", _END})
# Magic bytes: a proxy's error page must not be saved as a mask.
_SIGNATURES: Final = {"png": b"\x89PNG\r\n\x1a\n", "npz": b"PK"}

_log = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")


class AsyncClient:
    """A client whose methods are awaited. ``await aclose()`` it, or use it in an ``async with``.

    Lost connections and answers 429, 502, 503 and 504 are tried again up to ``retries`` times, not before the service's
    Retry-After. That is safe: the same image, labels and options are the same job. ``timeout`` is how many seconds the
    service may be silent, beyond what it is asked to wait. The API key is sent to this service alone. Callbacks should
    not block.

    All methods raise SemplesError or a subclass: Unauthorized, NotFound, InvalidRequest (BadImage, UnknownLabel),
    Unavailable, JobFailed, JobCanceled; and OSError if a local file cannot be read or written.
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
        if retries < 0:
            raise ValueError(f"expected 0 retries or more, got {retries}")
        self._retries = retries
        self._uncounted: frozenset[str] = frozenset()  # problems that use up no retry
        self._timeout = timeout
        self._sleep = sleep
        self._http = httpx.AsyncClient(
            base_url=_base_url(url),
            headers={"Accept": "application/json", **_key_headers(key)},
            # The caller alone decides how many requests are made at once.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
            transport=transport,
        )

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
        model: str | None = None,
        vocabulary: Vocabulary | None = None,
        refine: str | None = None,
        background_threshold: float | None = None,
        background_power: float | None = None,
        min_confidence: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> AsyncResult:
        """Make a mask of an image from its labels; returns when it is done, however long that takes.

        Options that are None are the model's defaults. ``labels`` are names or synonyms of the model's classes, any
        names with ``vocabulary="open"``. ``refine`` is a chain of refiners such as "random_walk+pamr". The background's
        score is ``background_threshold``, in (0, 1), or (1 - best score) to the ``background_power``. Pixels with less
        than ``min_confidence`` become 255.

        Raises:
            TypeError: if the image is of another type.
            ValueError: if pixels have another shape or type, or there is no label.
        """
        form = {
            "model": model,
            "vocabulary": vocabulary,
            "refine": refine,
            "background_threshold": background_threshold,
            "background_power": background_power,
            "min_confidence": min_confidence,
            "labels": _label_names(labels),
        }
        content = await run_sync(image_bytes, image)
        return await self._post_image("/pseudo-mask", content, form, on_progress)

    async def segment(
        self,
        image: ImageLike,
        *,
        model: str | None = None,
        refine: str | None = None,
        min_confidence: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> AsyncResult:
        """Make a mask of an image without labels, with a model that has a segmenter; see ``pseudo_mask``."""
        form = {"model": model, "refine": refine, "min_confidence": min_confidence}
        content = await run_sync(image_bytes, image)
        return await self._post_image("/segment", content, form, on_progress)

    async def job(self, job_id: str) -> Job:
        """Return a job's state."""
        return await self._json("GET", f"/jobs/{_quoted(job_id)}", Job.from_json)

    async def result(self, job_id: str, *, on_progress: OnProgress | None = None) -> AsyncResult:
        """Return a job's result, once it has ended; raises as ``pseudo_mask``."""
        return await self._result(await self.job(job_id), on_progress)

    async def cancel(self, job_id: str) -> Job | None:
        """Cancel a job. One that has ended or is unknown is deleted with its files: None."""
        answer = await self._request("DELETE", f"/jobs/{_quoted(job_id)}")
        return _parsed(answer, Job.from_json) if answer.content else None

    async def rethreshold(
        self,
        job: str | Mask,
        *,
        background_threshold: float | None = None,
        background_power: float | None = None,
        min_confidence: float | None = None,
    ) -> Mask:
        """Decide a finished job's mask anew from its scores, without the model; None keeps the job's own option."""
        job_id = job.job_id if isinstance(job, Mask) else job
        thresholds = {
            "background_threshold": background_threshold,
            "background_power": background_power,
            "min_confidence": min_confidence,
        }
        return Mask(job_id, await self._file(job_id, "mask.png", **thresholds))

    async def models(self) -> tuple[Model, ...]:
        """List the models."""
        return await self._json("GET", "/models", _models)

    async def model(self, name: str) -> Model:
        """Describe one model; its document has ``nearest_nouns`` of its background prompts."""
        return await self._json("GET", f"/models/{_quoted(name)}", Model.from_json)

    async def batch(
        self,
        images: str | Path,
        labels: str | Path,
        output: str | Path,
        *,
        model: str | None = None,
        refine: str | None = None,
        background_threshold: float | None = None,
        background_power: float | None = None,
        min_confidence: float | None = None,
        concurrency: int = 4,
        save_scores: bool = False,
        overwrite: bool = False,
        on_photo: OnPhoto | None = None,
    ) -> Outcome:
        """Make the masks of a folder of images, several at once; the files are those of ``make-pseudo-masks``.

        Interrupted or killed, the same call continues. An error about one image is noted in ``summary.json`` and in the
        outcome; a full queue or a rate limit is waited for. ``labels`` is a labels.csv or another file that
        ``make-pseudo-masks`` takes, ``concurrency`` the number of requests at once; ``save_scores`` keeps ``scores/``
        too. ``overwrite`` also replaces files that are not ours, and masks made with another model or options.

        Raises:
            ValueError: if labels, images and model do not match, or the output holds what is not overwritten.
        """
        if concurrency < 1:
            raise ValueError(f"expected at least one photo in flight, got {concurrency}")
        options: dict[str, Any] = {
            "refine": refine,
            "background_threshold": background_threshold,
            "background_power": background_power,
            "min_confidence": min_confidence,
        }
        chosen = await self._choose_model(model)
        patient = copy(self)  # on the same connections
        patient._uncounted = _BUSY

        async def make(sample: Sample, image: bytes) -> Made:
            names = [chosen.classes.names[channel] for channel in sample.channels]
            form = {**options, "model": chosen.name, "labels": names}
            made = await patient._post_image("/pseudo-mask", image, form)
            scores = await patient._file(made.job_id, "scores.npz") if save_scores else None
            return made.job, made.png, scores

        job = FolderJob(
            output=Path(output),
            model=chosen,
            options=fill_defaults(chosen.defaults, **options),
            save_scores=save_scores,
            make=make,
            on_photo=on_photo,
            overwrite=overwrite,
        )
        samples = read_folder(Path(images), Path(labels), chosen.classes)
        return await job.run(samples, concurrency=concurrency)

    async def submit_batch(
        self,
        archive: str | Path,
        *,
        model: str | None = None,
        refine: str | None = None,
        background_threshold: float | None = None,
        background_power: float | None = None,
        min_confidence: float | None = None,
    ) -> Batch:
        """Post a zip of images and their labels; the same zip and options again are the same batch, which continues."""
        form = {
            "model": model,
            "refine": refine,
            "background_threshold": background_threshold,
            "background_power": background_power,
            "min_confidence": min_confidence,
        }
        with Path(archive).open("rb") as file:
            return await self._json(
                "POST",
                "/batches",
                Batch.from_json,
                patience=_UNPACK_SECONDS,
                data=_given(form),
                files={"archive": ("archive", file)},
            )

    async def batch_status(self, batch_id: str) -> Batch:
        """Return a batch's state."""
        return await self._json("GET", f"/batches/{_quoted(batch_id)}", Batch.from_json)

    async def wait_for_batch(self, batch_id: str) -> Batch:
        """Return a batch once it has ended."""
        polls = 0
        while not (batch := await self.batch_status(batch_id)).ended:
            await self._sleep(_BATCH_PAUSES[min(polls, len(_BATCH_PAUSES) - 1)])
            polls += 1
        return batch

    async def batch_items(self, batch_id: str, *, status: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """Yield a batch's images, or those of a status: number, image, labels, status, job, problem."""
        after = None
        while True:
            items, after = await self._batch_page(batch_id, status, after)
            for item in items:
                yield item
            if after is None:
                return

    async def _batch_page(self, batch_id: str, status: str | None, after: object) -> tuple[list[dict[str, Any]], Any]:
        """Return some of a batch's images, and the cursor of the next page; None after the last."""
        return await self._json(
            "GET",
            f"/batches/{_quoted(batch_id)}/items",
            lambda page: (list(page["items"]), page.get("next")),
            params=_given({"status": status, "after": after}),
        )

    async def batch_report(self, batch_id: str) -> dict[str, Any]:
        """Return a batch's report, in JSON's types."""
        return await self._json("GET", f"/batches/{_quoted(batch_id)}/report", dict[str, Any])

    async def save_archive(self, batch_id: str, path: str | Path, *, format: ArchiveFormat = "voc") -> Path:
        """Write the masks of a batch that has ended as a zip, whole or not at all; returns its path."""
        target = Path(path)
        partial_file = target.with_name(target.name + ".partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial_file.open("wb") as file:
                await self._request(
                    "GET",
                    f"/batches/{_quoted(batch_id)}/archive.zip",
                    patience=_UNPACK_SECONDS,
                    into=file,
                    params={"format": format},
                )
            partial_file.replace(target)
        finally:
            partial_file.unlink(missing_ok=True)
        return target

    async def cancel_batch(self, batch_id: str) -> None:
        """Cancel the images of a batch that are not done; delete a batch that has ended."""
        await self._request("DELETE", f"/batches/{_quoted(batch_id)}")

    async def _choose_model(self, name: str | None) -> Model:
        known = await self.models()
        found = [each for each in known if (each.default if name is None else each.name == name)]
        if not found:
            names = ", ".join(each.name for each in known) or "none"
            raise ValueError(f"expected a model of the service ({names}), got {name or 'no default'}")
        return found[0]

    async def _post_image(
        self,
        path: str,
        image: bytes,
        form: Mapping[str, Any],
        on_progress: OnProgress | None = None,
    ) -> AsyncResult:
        """Post an image and return its result; again if its job is deleted meanwhile: equal posts share one job."""
        wait = WAIT_SECONDS if on_progress is None else 0
        for left in reversed(range(_POSTS)):
            try:
                job = await self._json(
                    "POST",
                    path,
                    Job.from_json,
                    patience=wait,
                    params=_given({"wait": wait or None}),
                    data=_given(form),
                    files={"image": ("image", image)},
                )
                return await self._result(job, on_progress)
            except NotFound as error:
                if error.kind != "unknown-job" or not left:
                    raise
        raise RuntimeError("expected to return or raise")

    async def _result(self, job: Job, on_progress: OnProgress | None) -> AsyncResult:
        if not job.ended:
            job = await self._follow(job.id, on_progress)
        job.finished()
        mask = await self._file(job.id, "mask.png")
        return AsyncResult(job.id, mask, job, partial(self._file, job.id))

    async def _follow(self, job_id: str, on_progress: OnProgress | None) -> Job:
        """Return a job once it has ended."""
        async with aclosing(self._events(job_id)) as events:
            async for event in events:
                if isinstance(event, Job):
                    return event
                if on_progress is not None:
                    _report(event, on_progress)
        raise RuntimeError("expected events to end with the job")

    async def _events(self, job_id: str) -> AsyncGenerator[ServerSentEvent | Job, None]:
        """Yield a job's events, over as many connections as that takes, and last the job itself."""
        path, last_id, silent = f"/jobs/{_quoted(job_id)}", "", 0
        while not (job := await self.job(job_id)).ended:
            headers = {"Accept": "text/event-stream"}
            headers |= {"Last-Event-ID": last_id} if last_id else {}
            name, error = "", None
            try:
                async with (
                    self._open("GET", f"{path}/events", _PING_SECONDS, headers=headers) as answer,
                    aclosing(EventSource(answer).aiter_sse()) as events,
                ):
                    async for event in events:
                        if event.event in _EVENTS:
                            name = event.event
                            last_id = last_id if name == _END else event.id
                            yield event
            except SemplesError as lost:
                error = lost  # not raised: the job's own state says more, and its retries are limited
            if name != _END:
                silent = 0 if name else silent + 1
                await self._sleep(_pause_seconds(silent, error, random.random()))
        yield job

    async def _file(self, job_id: str, name: str, **query: object) -> bytes:
        path = f"/jobs/{_quoted(job_id)}/{name}"
        content = (await self._request("GET", path, params=_given(query))).content
        if not content.startswith(_SIGNATURES[name.rpartition(".")[2]]):
            raise SemplesError(f"expected a file at {path}, got something else: is the URL right?")
        return content

    async def _json(self, method: str, path: str, parse: Callable[[Any], T], **request: Any) -> T:
        return _parsed(await self._request(method, path, **request), parse)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        patience: float = 0.0,
        into: BinaryIO | None = None,
        **content: Any,
    ) -> httpx.Response:
        """Send a request until it is answered; ``into`` takes the body, ``patience`` are extra seconds of silence."""
        tried = 0
        while True:
            try:
                async with self._open(method, path, patience, **content) as answer:
                    if into is None:
                        await answer.aread()
                        return answer
                    into.seek(0)
                    into.truncate()
                    async for chunk in answer.aiter_bytes():
                        into.write(chunk)
                    return answer
            except Unavailable as error:
                counts = error.kind not in self._uncounted
                if counts and tried == self._retries:
                    raise
                if tried == 0 and error.status is None:
                    _log.warning("%s; trying again, up to %d times", error, self._retries)
                pause = _pause_seconds(tried, error, random.random())
            await self._sleep(pause)
            tried += counts

    @asynccontextmanager
    async def _open(self, method: str, path: str, patience: float, **content: Any) -> AsyncIterator[httpx.Response]:
        """Send a request once and yield its answer, unread; raise a problem or a lost connection as SemplesError."""
        timeout = httpx.Timeout(self._timeout, read=self._timeout + patience, pool=None)
        try:
            async with self._http.stream(method, path, timeout=timeout, **content) as answer:
                if not answer.is_success:
                    await answer.aread()
                    raise error_of(answer, now=datetime.now(UTC))
                yield answer
        except httpx.RequestError as error:
            raise Unavailable(f"cannot reach the service: {_reason(error)}") from error


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    @wraps(method)
    def run(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(partial(method, self._client, *args, **kwargs))

    return run


def _blocking_result(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, AsyncResult]],
) -> Callable[Concatenate[Client, P], Result]:
    @wraps(method)
    def run(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        made = self._run(partial(method, self._client, *args, **kwargs))
        return Result(made.job_id, made.png, made.job, lambda name: self._run(partial(made._fetch, name)))

    return run


class Client:
    """``AsyncClient`` with methods that block. May be shared by threads; ``close()`` it, or use it in a ``with``.

    It runs in a thread of its own, which also calls ``on_progress`` and ``on_photo``: these must not call this client.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._client = AsyncClient(
            url,
            key=key,
            timeout=timeout,
            retries=retries,
            transport=transport,
            sleep=anyio.sleep if sleep is None else lambda seconds: run_sync(sleep, seconds),
        )
        stack = ExitStack()
        self._portal = stack.enter_context(start_blocking_portal())
        self._thread = self._portal.call(get_ident)
        stack.callback(self._portal.call, self._client.aclose)
        self._finalizer = finalize(self, stack.close)  # at exit too: the thread would block it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._finalizer()

    pseudo_mask = _blocking_result(AsyncClient.pseudo_mask)
    segment = _blocking_result(AsyncClient.segment)
    job = _blocking(AsyncClient.job)
    result = _blocking_result(AsyncClient.result)
    cancel = _blocking(AsyncClient.cancel)
    rethreshold = _blocking(AsyncClient.rethreshold)
    models = _blocking(AsyncClient.models)
    model = _blocking(AsyncClient.model)
    batch = _blocking(AsyncClient.batch)
    submit_batch = _blocking(AsyncClient.submit_batch)
    batch_status = _blocking(AsyncClient.batch_status)
    wait_for_batch = _blocking(AsyncClient.wait_for_batch)
    batch_report = _blocking(AsyncClient.batch_report)
    save_archive = _blocking(AsyncClient.save_archive)
    cancel_batch = _blocking(AsyncClient.cancel_batch)
    _batch_page = _blocking(AsyncClient._batch_page)

    def batch_items(self, batch_id: str, *, status: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield a batch's images, or those of a status: number, image, labels, status, job, problem."""
        after = None
        while True:
            items, after = self._batch_page(batch_id, status, after)
            yield from items
            if after is None:
                return

    def _run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run a coroutine function in the client's thread; an interrupt here cancels it."""

        async def outcome() -> tuple[T | None, BaseException | None]:
            try:
                return await function(), None
            except (KeyboardInterrupt, SystemExit) as error:
                return None, error  # of a callback: raised here, it would end the thread

        if get_ident() == self._thread:
            raise RuntimeError("expected a call from outside the client's callbacks, got one from a callback")
        future = self._portal.start_task_soon(outcome)
        try:
            result, interrupt = future.result()
        except BaseException:
            future.cancel()
            raise
        if interrupt is not None:
            raise interrupt
        return cast("T", result)


def _pause_seconds(tried: int, error: SemplesError | None, share: float) -> float:
    """Return the pause before the next try: at least Retry-After, or half a second, growing to 30 with each retry."""
    if isinstance(error, Unavailable) and error.retry_after is not None:
        return min(error.retry_after, _LONGEST_RETRY_AFTER) * (1 + share / 4)
    return min(_LONGEST_BACKOFF, 0.5 * 2.0 ** min(tried, 10)) * (1 + share) / 2


def _reason(error: httpx.RequestError) -> str:
    """Return an error's message; of a failed connection that of the first attempt."""
    cause: BaseException = error
    while isinstance(error, httpx.ConnectError) and (inner := cause.__cause__ or cause.__context__):
        cause = inner.exceptions[0] if isinstance(inner, BaseExceptionGroup) else inner
    if isinstance(cause, ConnectionError) and cause.errno:
        return f"[Errno {cause.errno}] {os.strerror(cause.errno)}"  # asyncio's text has no reason
    return str(cause) or type(cause).__name__


def _report(event: ServerSentEvent, on_progress: OnProgress) -> None:
    data = json.loads(event.data)
    if event.event == "progress":
        on_progress(str(data["stage"]), float(data["fraction"]))
    else:
        on_progress(str(data["status"]), float(event.event == _END))


def _parsed(answer: httpx.Response, parse: Callable[[Any], T]) -> T:
    try:
        return parse(answer.json())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        kind = answer.headers.get("content-type", "nothing")
        raise SemplesError(
            f"expected an answer of the service to {answer.request.url.path}, got {kind[:80]}: is the URL right?",
            status=answer.status_code,
        ) from error


def _models(document: Any) -> tuple[Model, ...]:
    default = document["default"]
    return tuple(Model.from_json(each, default=default) for each in document["models"])


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are not None, which stands for a default."""
    return {name: value for name, value in values.items() if value is not None}


def _label_names(labels: str | Sequence[str]) -> list[str]:
    names = [labels] if isinstance(labels, str) else list(labels)
    if not names:
        raise ValueError("expected at least one label, got none")
    return names


def _quoted(text: str) -> str:
    """Return an id or a name as one segment of a path."""
    if text in ("", ".", ".."):
        raise ValueError(f"expected an id or a name, got {text!r}")
    return quote(text, safe="")


def _base_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        # Not its message, which quotes a part: of a password, if that holds a # or a /.
        raise ValueError("expected the service's URL, http:// or https://, got one that cannot be read") from error
    if parsed.userinfo or parsed.query or parsed.fragment:  # it would be shown in messages
        raise ValueError("expected a URL without user, password, ? and #; a key goes into its own argument")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"expected the service's URL, http:// or https://, got {without_secrets(url)!r}")
    return parsed


def _key_headers(key: str | None) -> dict[str, str]:
    if key is None:
        return {}
    if not re.fullmatch(r"[!-~]+", key):  # the message does not quote the key
        raise ValueError("expected a key of printable ASCII without spaces, got another one")
    return {"Authorization": f"Bearer {key}"}
