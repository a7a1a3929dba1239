"""The client of ordinary programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack, cast

import httpx
from anyio.from_thread import start_blocking_portal

from service.client import calls, flows, operations
from service.client.asynchronous import AsyncClient
from service.client.connecting import RETRIES, TIMEOUT_SECONDS, http_options
from service.client.documents import Batch, Job, Model
from service.client.flows import Answer, Flow, MaskedJob, Pause, Send
from service.client.folder import Outcome
from service.client.listening import OnProgress
from service.client.operations import ArchiveFormat
from service.client.photos import OnPhoto
from service.client.results import Mask, Result

T = TypeVar("T")


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
        self._retries = flows.tries(retries)
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
        image: calls.ImageLike,
        labels: str | Sequence[str],
        *,
        on_progress: OnProgress | None = None,
        **options: Unpack[calls.PhotoOptions],
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
        flow = operations.pseudo_mask(image, labels, options, self._retries, on_progress)
        return self._result(self._run(flow))

    def segment(
        self,
        image: calls.ImageLike,
        *,
        on_progress: OnProgress | None = None,
        **options: Unpack[calls.SegmentOptions],
    ) -> Result:
        """Make a mask of whatever an image shows, with a model that has a segmenter; raises as ``pseudo_mask``."""
        flow = operations.segment(image, options, self._retries, on_progress)
        return self._result(self._run(flow))

    def job(self, job_id: str) -> Job:
        """Say where a job stands."""
        return self._run(flows.get_job(job_id, self._retries))

    def result(self, job_id: str, *, on_progress: OnProgress | None = None) -> Result:
        """Return what comes of a job, once it has ended; raises as ``pseudo_mask``."""
        return self._result(self._run(flows.result(job_id, self._retries, on_progress)))

    def cancel(self, job_id: str) -> Job | None:
        """Take a job back; None if it was over or is unknown: then it is gone, files and all."""
        return self._run(flows.cancel(job_id, self._retries))

    def rethreshold(self, job: str | Mask, **thresholds: Unpack[calls.Thresholds]) -> Mask:
        """Decide a finished job's mask anew by other thresholds, which the service does from its scores.

        Args:
            job: its id, or its result.
            thresholds: background_threshold or background_power, min_confidence; what is not named stays.
        """
        return self._run(operations.rethreshold(job, thresholds, self._retries))

    def models(self) -> tuple[Model, ...]:
        """List the models."""
        return self._run(operations.models(self._retries))

    def model(self, name: str) -> Model:
        """Describe one model; its document has ``nearest_nouns``, what its background prompts learned."""
        return self._run(operations.model(name, self._retries))

    def batch(
        self,
        images: str | Path,
        labels: str | Path,
        output: str | Path,
        *,
        concurrency: int = 4,
        save_scores: bool = False,
        on_photo: OnPhoto | None = None,
        **options: Unpack[calls.PseudoMaskOptions],
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
        self, archive: str | Path, **options: Unpack[calls.PseudoMaskOptions]
    ) -> Batch:
        """Post a zip of photos and their labels; the same zip and options again are the same batch, which goes on.

        Raises:
            OSError: if the zip cannot be read.
        """
        return self._run(operations.submit_batch(archive, options, self._retries))

    def batch_status(self, batch_id: str) -> Batch:
        """Say where a batch stands."""
        return self._run(operations.batch_status(batch_id, self._retries))

    def wait_for_batch(self, batch_id: str) -> Batch:
        """Return a batch once it has ended."""
        return self._run(operations.wait_for_batch(batch_id, self._retries))

    def batch_items(self, batch_id: str, *, status: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield a batch's photos, or those of a status: number, image, labels, status, job, problem."""
        after: Any = None
        while True:
            page = operations.batch_items(batch_id, status, after, self._retries)
            items, after = self._run(page)
            yield from items
            if after is None:
                return

    def batch_report(self, batch_id: str) -> dict[str, Any]:
        """Return what a batch came to, in JSON's types."""
        return self._run(operations.batch_report(batch_id, self._retries))

    def save_archive(
        self, batch_id: str, path: str | Path, *, format: ArchiveFormat = "voc"
    ) -> Path:
        """Write the masks of a batch that has ended as a zip; returns its path.

        Raises:
            OSError: if it cannot be written.
        """
        return self._run(operations.save_archive(batch_id, path, format, self._retries))

    def cancel_batch(self, batch_id: str) -> None:
        """Cancel what is not done of a batch; forget one that has ended."""
        self._run(operations.cancel_batch(batch_id, self._retries))

    def _result(self, made: MaskedJob) -> Result:
        return Result(
            made.job.id,
            made.mask,
            made.job,
            lambda name: self._run(operations.file(made, name, self._retries)),
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
