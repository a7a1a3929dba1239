"""A folder of images sent to the service, several in flight; the files are those of ``semples make-pseudo-masks``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import anyio

from models.data.classes import Sample
from models.data.images import ImageError
from models.data.mask_files import mask_record
from models.data.mask_folder import MaskFolderWriter, Outcome, mask_settings, write_mask
from models.data.photo_files import is_of_one_file, read_photo
from models.inference.masks import MaskOptions
from service.client.errors import BadImage, JobCanceled, JobFailed, SemplesError, UnknownLabel
from service.client.types import Job, Model

OnPhoto = Callable[[int, int, int], None]
"""Called with the numbers of images done, those of earlier calls with them, failed, and in all."""
Made: TypeAlias = tuple[Job, bytes, bytes | None]
"""A finished job, its mask's file, and its scores' file if it is kept."""


@dataclass(frozen=True)
class FolderJob:
    """The masks of a folder of images, made by the service."""

    output: Path
    model: Model
    options: MaskOptions
    save_scores: bool
    make: Callable[[Sample, bytes], Awaitable[Made]]  # from an image's labels and file
    on_photo: OnPhoto | None  # also called once before the first image
    overwrite: bool = False  # also what is not ours

    async def run(self, samples: Sequence[Sample], *, concurrency: int) -> Outcome:
        """Make the masks that are not there yet. An error about one image is noted; others are raised."""
        settings = mask_settings(self._made_by, self.options, scores=self.save_scores)
        errors: list[BaseException] = []
        with MaskFolderWriter(self.output, samples, self.model.classes, settings, overwrite=self.overwrite) as folder:
            queue = iter(folder.todo)

            async def work() -> None:
                try:
                    for sample in queue:  # shared by all workers
                        await self._make_one(sample, folder)
                        self._report(folder)
                except (Exception, KeyboardInterrupt, SystemExit) as error:
                    errors.append(error)  # raised below as it is, not in a group
                    group.cancel_scope.cancel()

            self._report(folder)
            async with anyio.create_task_group() as group:
                for _ in range(concurrency):
                    group.start_soon(work)
            if errors:
                raise errors[0]
            return folder.finish()

    @property
    def _made_by(self) -> dict[str, str]:
        return {"name": self.model.name, "version": self.model.version}

    async def _make_one(self, sample: Sample, folder: MaskFolderWriter) -> None:
        try:
            image = read_photo(sample.path, sample.name)
        except ImageError as error:
            return folder.fail(sample, str(error))
        try:
            job, mask, scores = await self.make(sample, image)
        except SemplesError as error:
            if not _is_about_image(error):
                raise
            return folder.fail(sample, str(error))
        record = job_record(job, image=sample.name)
        if record["model"] != self._made_by:
            raise ValueError(
                f"expected masks of {self.model.name} {self.model.version}, got {job.model} {job.version}: "
                "the service has another model now"
            )
        try:
            write_mask(self.output, sample.stem, mask, scores)
        except OSError as error:
            if not is_of_one_file(error):
                raise
            return folder.fail(sample, f"cannot write its files: {error.strerror}")
        return folder.add(sample, record)

    def _report(self, folder: MaskFolderWriter) -> None:
        if self.on_photo is not None:
            done, failed = folder.kept + folder.made, len(folder.failed)
            self.on_photo(done, failed, folder.total)


def job_record(job: Job, *, image: str) -> dict[str, Any]:
    """Return a job's record for ``results.jsonl``; options that this version does not know are left out."""
    size, options = job.document["image"], job.document["options"]
    known = {each.name: options[each.name] for each in fields(MaskOptions) if each.name in options}
    return mask_record(
        image=image,
        size=(size["width"], size["height"]),
        model={"name": job.model, "version": job.version},
        options=MaskOptions(**known),
        classes=job.classes,
        ignored=job.ignored,
    )


def _is_about_image(error: SemplesError) -> bool:
    """Whether the next image may succeed; 500 and 408 count as such."""
    own = isinstance(error, BadImage | JobFailed | JobCanceled | UnknownLabel)
    return own or error.status in (408, 500) or error.kind == "unknown-job"
