"""What can be made of a finished job's stored scores, on the API's CPU. Pure but for reading blobs."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.data.classes import normalize
from models.data.images import ImageHeader, read_image
from models.data.mask_files import (
    label_map_png,
    overlay_png,
    read_cams,
    read_soft_maps,
    soft_map_png,
)
from models.data.mask_folder import MaskedPhoto
from models.inference.masks import (
    Decision,
    MaskOptions,
    SoftMaps,
    class_result,
    decide,
    upsample_bilinear,
)
from service.api.errors import ProblemError
from worker.queue.schema import ClassRecord, JobRequest, JobResult, Options
from worker.storage import BlobStore


@dataclass(frozen=True)
class Finished:
    """A finished job: its id, what was asked for and what came out."""

    job_id: str
    request: JobRequest
    result: JobResult


class Results:
    """Files of a finished job, decided as some options say.

    Args:
        job: the job.
        options: the job's own, or others: then all is as a run with them would give, without the model.
        blobs: where its files are.
        max_pixels: largest image, width times height.

    All methods raise BlobError if a blob cannot be read, BlobMissingError if it has expired.
    """

    def __init__(
        self, job: Finished, options: Options, blobs: BlobStore, *, max_pixels: int
    ) -> None:
        self._job = job
        self._options = options
        self._anew = options != job.result.options
        self._blobs = blobs
        self._max_pixels = max_pixels

    def mask(self) -> bytes:
        """Return the label map as a palette PNG; decided anew, its provenance names the other options."""
        stored = self._blobs.get(self._job.result.blobs.mask)
        if not self._anew:
            return stored
        text = _text(stored) | {"Options": json.dumps(self._options.model_dump(), sort_keys=True)}
        return label_map_png(self._decision.label_map, text=text)

    def scores(self) -> bytes:
        """Return the soft maps; see ``models.data.mask_files.scores_npz``."""
        return self._blobs.get(self._job.result.blobs.scores)

    def overlay(self) -> bytes:
        """Draw the mask over its image, as a PNG."""
        image = read_image(self._blobs.get(self._job.request.image), max_pixels=self._max_pixels)
        return overlay_png(image.pixels, self._label_map)

    def confidence(self) -> bytes:
        """Return how sure each pixel is, as a PNG; see ``soft_map_png``."""
        return soft_map_png(self._decision.confidence)

    def cam(self, named: ClassRecord) -> bytes:
        """Return a class's CAM at the image's size, as a PNG; where there is none, of a segmenter its scores."""
        maps = self._maps
        cams = read_cams(io.BytesIO(self.scores()))
        place = maps.indices.tolist().index(named.index)
        chosen = (maps.scores if cams is None else cams)[place : place + 1]
        height, width = maps.size
        return soft_map_png(
            upsample_bilinear(upsample_bilinear(chosen, width, axis=2), height, axis=1)[0]
        )

    def masked_photo(self, name: str) -> MaskedPhoto:
        """Return the label map as exporters take it.

        Args:
            name: of the image.
        """
        height, width = self._label_map.shape
        return MaskedPhoto(
            path=Path(name),
            name=name,
            header=ImageHeader(width, height, 1, ""),
            label_map=self._label_map,
            text={},
            model=f"{self._job.result.model.name} {self._job.result.model.version}",
            confidence={
                each.index: each.confidence
                for each in self._classes()
                if each.confidence is not None
            },
        )

    def _classes(self) -> list[ClassRecord]:
        classes = self._job.result.classes
        if not self._anew:
            return list(classes)
        decided = (
            class_result(each.index, each.name, self._decision, zero_shot=each.zero_shot)
            for each in classes
        )
        return [ClassRecord(**asdict(each)) for each in decided]

    @cached_property
    def _label_map(self) -> NDArray[np.uint8]:
        if self._anew:
            return self._decision.label_map
        stored = self._blobs.get(self._job.result.blobs.mask)
        return np.array(Image.open(io.BytesIO(stored), formats=("PNG",)))

    @cached_property
    def _maps(self) -> SoftMaps:
        return read_soft_maps(io.BytesIO(self.scores()))

    @cached_property
    def _decision(self) -> Decision:
        return decide(self._maps, MaskOptions(**self._options.model_dump()))


def find_class(job: Finished, name: str) -> ClassRecord:
    """Return a class of a job by its index in label maps or its name, whatever its case.

    Raises:
        ProblemError: if the job is about no such class.
    """
    classes = job.result.classes
    for each in classes:
        if name == str(each.index):
            return each
    for each in classes:
        if normalize(name) == normalize(each.name):
            return each
    known = [each.name for each in classes]
    said = f"expected one of {', '.join(known)}" if known else "the job has found no class"
    raise ProblemError("unknown-class", f"{said}, got {name[:80]!r}", classes=known)


def _text(png: bytes) -> dict[str, str]:
    """Return a PNG's text chunks in their order."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        return {
            str(key): str(value) for key, value in picture.info.items() if isinstance(value, str)
        }
