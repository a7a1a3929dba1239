"""What must come out of a request, whatever happens to the stack that works on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import uuid4

from models.data.classes import ClassInfo
from models.inference.masks import ClassResult, LabeledImage, MaskOptions, OnProgress, UnlabeledImage
from tests.helpers.service_doubles import DoublePredictor, HalfDone
from tests.helpers.service_fixtures import png
from worker.inference.pipeline import WorkerContext, forward, postprocess, preprocess
from worker.queue.registry import ModelInfo
from worker.queue.schema import JobRequest, JobResult, ModelRef, ResultBlobs
from worker.storage import BlobStore, blob_key

SIZES = ((30, 20), (36, 20), (30, 26))
"""Width and height of images, few: only equal ones share a batch."""


@dataclass(frozen=True)
class Asked:
    """What is asked for, and of an image of what size."""

    labels: tuple[str, ...]
    size: tuple[int, int] = SIZES[0]

    def request(self, number: int) -> tuple[JobRequest, bytes]:
        """Return a request for an image that no other number's is about, and the image."""
        width, height = self.size
        data = png(width=width, height=height, color=(*divmod(number, 256), 0))
        request = JobRequest(
            task="pseudo_mask",
            image=blob_key("uploads", data),
            labels=self.labels,
            options=MaskOptions(refine="none", min_confidence=0.0, background_threshold=0.4),
            model=ModelRef(name="double", version="0123456789ab"),
        )
        return request, data


class InstantPredictor(DoublePredictor):
    """Finds what it is asked for, whatever that is, at once."""

    def _activate(
        self,
        batch: Sequence[LabeledImage | UnlabeledImage],
        found: Sequence[Sequence[ClassInfo]],
        on_progress: OnProgress,
    ) -> list[HalfDone]:
        return [HalfDone(*each) for each in zip(batch, found, strict=True)]


def context_of(predictor: Any, blobs: BlobStore | None = None, *, worker: str = "w") -> WorkerContext:
    """A worker's context, by default with a store in memory."""
    model = ModelInfo.model_validate(predictor.info.to_json())
    return WorkerContext(predictor, model, blobs or BlobStore.open(f"memory://{uuid4().hex}"), worker)


def run_steps(request: JobRequest, context: WorkerContext, *, waited: float = 0.0) -> JobResult:
    """Do all steps of one job, one after the other."""
    image = preprocess(request, context)
    (output,), seconds = forward([image], context, lambda _stage, _fraction: None)
    return postprocess(image, output, context, waited=waited, forward_seconds=seconds)


@dataclass(frozen=True)
class Undisturbed:
    """What comes out where nothing happens."""

    classes: tuple[ClassResult, ...]
    blobs: ResultBlobs


@cache
def undisturbed(asked: Asked) -> Undisturbed:
    """What an undisturbed worker makes of a request: the images differ in what it does not look at."""
    context = context_of(InstantPredictor())
    request, data = asked.request(0)
    context.blobs.put("uploads", data)
    result = run_steps(request, context)
    return Undisturbed(result.classes, result.blobs)
