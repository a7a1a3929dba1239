"""The client of programs that await."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import anyio
import httpx

from models.data.classes import Sample
from service.client import flows, operations
from service.client.calls import (
    Call,
    ImageLike,
    PhotoOptions,
    PseudoMaskOptions,
    SegmentOptions,
    Thresholds,
    pseudo_mask_call,
)
from service.client.connecting import RETRIES, TIMEOUT_SECONDS, http_options
from service.client.documents import Batch, Job, Model
from service.client.flows import Answer, Flow, MaskedJob, Pause, Send
from service.client.folder import Outcome, OutputFolder
from service.client.listening import OnProgress
from service.client.operations import ArchiveFormat
from service.client.photos import OnPhoto, Sending, send_photos
from service.client.plan import plan
from service.client.results import AsyncResult, Mask

T = TypeVar("T")


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
        self._retries = flows.tries(retries)
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
        flow = operations.pseudo_mask(image, labels, options, self._retries, on_progress)
        return self._result(await self._run(flow))

    async def segment(
        self,
        image: ImageLike,
        *,
        on_progress: OnProgress | None = None,
        **options: Unpack[SegmentOptions],
    ) -> AsyncResult:
        """Make a mask of whatever an image shows, with a model that has a segmenter."""
        flow = operations.segment(image, options, self._retries, on_progress)
        return self._result(await self._run(flow))

    async def job(self, job_id: str) -> Job:
        """Say where a job stands."""
        return await self._run(flows.get_job(job_id, self._retries))

    async def result(self, job_id: str, *, on_progress: OnProgress | None = None) -> AsyncResult:
        """Return what comes of a job, once it has ended."""
        return self._result(await self._run(flows.result(job_id, self._retries, on_progress)))

    async def cancel(self, job_id: str) -> Job | None:
        """Take a job back; None if it was over or is unknown: then it is gone, files and all."""
        return await self._run(flows.cancel(job_id, self._retries))

    async def rethreshold(self, job: str | Mask, **thresholds: Unpack[Thresholds]) -> Mask:
        """Decide a finished job's mask anew by other thresholds."""
        return await self._run(operations.rethreshold(job, thresholds, self._retries))

    async def models(self) -> tuple[Model, ...]:
        """List the models."""
        return await self._run(operations.models(self._retries))

    async def model(self, name: str) -> Model:
        """Describe one model."""
        return await self._run(operations.model(name, self._retries))

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
        model = await self._run(operations.chosen_model(options.get("model"), self._retries))
        what = plan(
            (Path(images), Path(labels), Path(output)),
            model,
            save_scores=save_scores,
            options=options,
        )
        chosen: PseudoMaskOptions = {**options, "model": model.name}

        def call(sample: Sample, photo: bytes) -> Call:
            return pseudo_mask_call(photo, what.labels(sample), chosen, wait=flows.WAIT_SECONDS)

        with OutputFolder(what) as folder:
            sending = Sending(self._run, call, flows.patient(self._retries), save_scores)
            await send_photos(
                folder, sending, concurrency=concurrency, on_photo=on_photo or _say_nothing
            )
            return folder.finish()

    async def submit_batch(
        self, archive: str | Path, **options: Unpack[PseudoMaskOptions]
    ) -> Batch:
        """Post a zip of photos and their labels; the same zip and options again are the same batch, which goes on."""
        return await self._run(operations.submit_batch(archive, options, self._retries))

    async def batch_status(self, batch_id: str) -> Batch:
        """Say where a batch stands."""
        return await self._run(operations.batch_status(batch_id, self._retries))

    async def wait_for_batch(self, batch_id: str) -> Batch:
        """Return a batch once it has ended."""
        return await self._run(operations.wait_for_batch(batch_id, self._retries))

    async def batch_items(
        self, batch_id: str, *, status: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield a batch's photos, or those of a status."""
        after: Any = None
        while True:
            page = operations.batch_items(batch_id, status, after, self._retries)
            items, after = await self._run(page)
            for item in items:
                yield item
            if after is None:
                return

    async def batch_report(self, batch_id: str) -> dict[str, Any]:
        """Return what a batch came to, in JSON's types."""
        return await self._run(operations.batch_report(batch_id, self._retries))

    async def save_archive(
        self, batch_id: str, path: str | Path, *, format: ArchiveFormat = "voc"
    ) -> Path:
        """Write the masks of a batch that has ended as a zip; returns its path."""
        return await self._run(operations.save_archive(batch_id, path, format, self._retries))

    async def cancel_batch(self, batch_id: str) -> None:
        """Cancel what is not done of a batch; forget one that has ended."""
        await self._run(operations.cancel_batch(batch_id, self._retries))

    def _result(self, made: MaskedJob) -> AsyncResult:
        return AsyncResult(
            made.job.id,
            made.mask,
            made.job,
            lambda name: self._run(operations.file(made, name, self._retries)),
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
