"""A whole folder of photos through a service, several in flight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import anyio

from models.data.classes import Sample
from service.client import flows, operations
from service.client.calls import Call
from service.client.errors import BadImage, JobCanceled, JobFailed, SemplesError, UnknownLabel
from service.client.flows import Flow, MaskedJob, Retries
from service.client.folder import OutputFolder

T = TypeVar("T")

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
        made = yield from flows.post(call, self.retries, None)
        scores = operations.file(made, "scores.npz", self.retries)
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
