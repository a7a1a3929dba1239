"""Records, key names and lifetimes that service, worker and janitor share. No torch, no FastAPI."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from redis.client import Pipeline

from models.data.classes import Vocabulary
from models.inference.masks import ClassResult, MaskOptions

Task = Literal["pseudo_mask", "segment"]

TASK_PATHS: Final[Mapping[Task, str]] = MappingProxyType(
    {"pseudo_mask": "worker.tasks.pseudo_mask", "segment": "worker.tasks.segment_image"}
)
"""What queued jobs name as their function: constants that say which task, never imported."""

LEASE_SECONDS: Final = 15
"""A worker renews its own lease and its jobs'; without it the worker counts as dead, its jobs as abandoned."""

MAX_JOB_ATTEMPTS: Final = 3
"""Attempts of a job; the death of its worker or a transient error uses one up."""

QUEUE_SECONDS: Final = 24 * 3600
RESULT_SECONDS: Final = 24 * 3600
FAILURE_SECONDS: Final = 7 * 24 * 3600
BLOB_SECONDS: Final = QUEUE_SECONDS + RESULT_SECONDS
"""An upload must outlive the wait in the queue; a result, the record that names it."""

JOB_ID: Final = re.compile(r"[0-9a-f]{32}")

DEAD_KEY: Final = "semples:dead"
"""Set of the names of the models that have dead letters."""

_QUEUE_PREFIX, _BATCH_SUFFIX = "semples-", ":batch"

FailureCode = Literal[
    "image_unreadable",
    "unknown_label",
    "cannot_segment",
    "input_missing",
    "storage_full",
    "storage_unavailable",
    "out_of_memory",
    "timeout",
    "worker_died",
    "task_not_allowed",
    "model_error",
    "no_labels",
]


def queue_name(model: str) -> str:
    """Return the queue of the jobs that somebody posts: one for each model name."""
    return f"{_QUEUE_PREFIX}{model}"


def batch_queue_name(model: str) -> str:
    """Return the queue of the items of batches, which workers read after the other one."""
    return f"{queue_name(model)}{_BATCH_SUFFIX}"


def model_of_queue(name: str) -> str | None:
    """Return the model of a queue's name; None if the queue is none of ours."""
    if not name.startswith(_QUEUE_PREFIX):
        return None
    return name.removeprefix(_QUEUE_PREFIX).removesuffix(_BATCH_SUFFIX)


def cancel_key(job_id: str) -> str:
    """Return the key of a job's cancel flag, at which its worker drops it."""
    return f"semples:cancel:{job_id}"


def dead_key(model: str) -> str:
    """Return the key of a model's dead letters: job ids, by the time of their death."""
    return f"{DEAD_KEY}:{model}"


class Record(BaseModel):
    """A frozen message. Unknown fields are ignored, so that old and new processes can talk."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ModelRef(Record):
    """Which model: its bundle's name and the hash of what is in it."""

    name: str
    version: str


class JobRequest(Record):
    """The argument of a job: references and choices, never pixels."""

    task: Task = "pseudo_mask"  # the default is that of jobs from before there were two
    image: str  # blob key of the upload, which holds the hash of its content
    labels: tuple[str, ...]  # class names in canonical order; none for the segmenter
    options: MaskOptions  # complete, with no default left
    model: ModelRef
    vocabulary: Vocabulary = "closed"  # "open" where a label is none of the model's classes

    @model_serializer(mode="wrap")
    def _omit_default(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a closed vocabulary and a slope of 0, so that job ids are those from before there was another."""
        content: dict[str, Any] = dump(self)
        if not self.options.threshold_slope:
            content["options"].pop("threshold_slope", None)
        if self.vocabulary == "closed":
            content.pop("vocabulary", None)
        return content

    def job_id(self) -> str:
        """Return the job's id: 32 hex digits of the hash of everything that decides its result."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


class ImageRecord(Record):
    """The image as it was worked on: upright, after its EXIF orientation was applied.

    ``value_range`` is the smallest and the largest value of 16-bit gray, if these became black and white.
    """

    width: int
    height: int
    exif_orientation: int
    value_range: tuple[int, int] | None = None


class Timings(Record):
    """Seconds: waiting in the queue, decoding, the model with refinement, encoding and storing."""

    queue: float
    decode: float
    model: float
    encode: float


class ResultBlobs(Record):
    """Blob keys of a job's files; the overlay is drawn from the mask and the upload when asked for."""

    mask: str
    scores: str


class JobResult(Record):
    """Result of a finished job; its files are in ``blobs``."""

    model: ModelRef
    image: ImageRecord
    labels: tuple[str, ...]
    options: MaskOptions
    classes: tuple[ClassResult, ...]
    ignored: float
    timings: Timings
    blobs: ResultBlobs
    worker: str


class Progress(Record):
    """How far a running job is: the stage's name, and the fraction of the whole job, 0 to 1."""

    stage: str
    fraction: float


class JobFailure(Record):
    """Why a job failed, in a sentence for a person; ``repeatable`` if posting the same again runs it again."""

    code: FailureCode
    detail: str
    repeatable: bool


FILES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "mask": "mask.png",
        "overlay": "overlay.png",
        "confidence": "confidence.png",
        "scores": "scores.npz",
        "coco": "coco.json",
        "polygons": "polygons.json",
        "label_studio": "label-studio.json",
        "cvat": "cvat.xml",
    }
)
"""Of a finished job, beside one CAM for each class."""


def job_links(path: str, *, finished: bool) -> dict[str, str]:
    """Return the paths of a job, its events and, once it is finished, its files; ``path`` is the job's own."""
    files = {name: f"{path}/{file}" for name, file in FILES.items()} if finished else {}
    return {"self": path, "events": f"{path}/events", **files}


EventName = Literal["status", "progress"]

MAX_EVENTS: Final = 256
"""Of one job; the oldest go first. A job has about a dozen for each attempt."""


def events_key(job_id: str) -> str:
    """Return the key of a job's stream."""
    return f"semples:events:{job_id}"


def add_event(pipeline: Pipeline, job_id: str, name: EventName, data: Mapping[str, Any]) -> None:
    """Add an event of JSON types to a job's stream, which lives as long as a result does.

    The end of a job is no event: it is the job's own status, written in the transaction that ends the job.
    """
    key = events_key(job_id)
    pipeline.xadd(key, {"event": name, "data": json.dumps(data)}, maxlen=MAX_EVENTS)
    pipeline.expire(key, RESULT_SECONDS)
