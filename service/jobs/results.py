"""A finished job's files, re-decided from its stored scores without the model."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.classes import normalize
from models.data.images import ImageHeader, read_image
from models.data.mask_files import (
    label_map_png,
    overlay_png,
    read_cams,
    read_mask,
    read_soft_maps,
    soft_map_png,
)
from models.data.mask_folder import MaskedImage
from models.inference.masks import (
    ClassResult,
    Decision,
    MaskOptions,
    SoftMaps,
    class_result,
    decide,
    upsample_bilinear,
)
from service.api.errors import ProblemError
from worker.queue.schema import JobRequest, JobResult
from worker.storage import BlobStore


@dataclass(frozen=True)
class FinishedJob:
    """A finished job: its id, its request and its result."""

    job_id: str
    request: JobRequest
    result: JobResult

    def find_class(self, name: str) -> ClassResult:
        """Return a class by its index in label maps or its name, whatever its case; ProblemError if there is none."""
        classes = self.result.classes
        for each in classes:
            if name == str(each.index):
                return each
        for each in classes:
            if normalize(name) == normalize(each.name):
                return each
        known = [each.name for each in classes]
        expected = f"expected one of {', '.join(known)}" if known else "the job has found no class"
        raise ProblemError("unknown-class", f"{expected}, got {name[:80]!r}", classes=known)


class JobResults:
    """Files of a finished job, as a run with these options would give them.

    All methods raise BlobError if a blob cannot be read, BlobMissingError if it has expired.
    """

    def __init__(self, job: FinishedJob, options: MaskOptions, blobs: BlobStore, *, max_pixels: int) -> None:
        self._job = job
        self._options = options
        self._changed = options != job.result.options
        self._blobs = blobs
        self._max_pixels = max_pixels

    def mask(self) -> bytes:
        """Return the label map as a palette PNG; its provenance names the options."""
        stored = self._stored_mask()
        if not self._changed:
            return stored
        _, text = read_mask(stored)
        text["Options"] = json.dumps(asdict(self._options), sort_keys=True)
        return label_map_png(self._decision.label_map, text=text)

    def scores(self) -> bytes:
        """Return the soft maps; see ``models.data.mask_files.scores_npz``."""
        return self._blobs.get(self._job.result.blobs.scores)

    def overlay(self) -> bytes:
        """Return the image under the mask's colors, as a PNG."""
        image = read_image(self._blobs.get(self._job.request.image), max_pixels=self._max_pixels)
        return overlay_png(image.pixels, self.label_map)

    def confidence(self) -> bytes:
        """Return each pixel's confidence, as a PNG; see ``soft_map_png``."""
        return soft_map_png(self._decision.confidence)

    def cam(self, chosen: ClassResult) -> bytes:
        """Return a class's CAM at the image's size, as a PNG; its scores where a segmenter made the mask."""
        maps = self._maps
        cams = read_cams(io.BytesIO(self.scores()))
        place = maps.indices.tolist().index(chosen.index)
        values = (maps.scores if cams is None else cams)[place : place + 1]
        height, width = maps.size
        upsampled = upsample_bilinear(upsample_bilinear(values, width, axis=2), height, axis=1)
        return soft_map_png(upsampled[0])

    def masked_image(self, name: str) -> MaskedImage:
        """Return the label map as exporters take it, with a name for its image."""
        height, width = self.label_map.shape
        model = self._job.result.model
        return MaskedImage(
            path=Path(name),
            name=name,
            stem=Path(name).stem,
            header=ImageHeader(width, height, 1, ""),
            label_map=self.label_map,
            text={},
            model=f"{model.name} {model.version}",
            confidence={c.index: c.confidence for c in self._classes() if c.confidence is not None},
        )

    @cached_property
    def label_map(self) -> NDArray[np.uint8]:
        """The label map, (H, W)."""
        if self._changed:
            return self._decision.label_map
        return read_mask(self._stored_mask())[0]

    def _stored_mask(self) -> bytes:
        return self._blobs.get(self._job.result.blobs.mask)

    def _classes(self) -> list[ClassResult]:
        classes = self._job.result.classes
        if not self._changed:
            return list(classes)
        return [class_result(each.index, each.name, self._decision, zero_shot=each.zero_shot) for each in classes]

    @cached_property
    def _maps(self) -> SoftMaps:
        return read_soft_maps(io.BytesIO(self.scores()))

    @cached_property
    def _decision(self) -> Decision:
        return decide(self._maps, self._options)
