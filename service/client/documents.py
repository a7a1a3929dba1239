"""What the service answers with, as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import httpx

from models.data.classes import ClassInfo, ClassList
from models.inference.masks import ClassResult, MaskOptions
from service.client.errors import JobCanceled, JobFailed, SemplesError

T = TypeVar("T")

ENDED: Final = frozenset({"finished", "failed", "canceled"})


@dataclass(frozen=True)
class Job:
    """Where a job stands and, once it is finished, what came out.

    Attributes:
        id: of the job.
        task: "pseudo_mask" or "segment".
        status: "queued", "running", "finished", "failed" or "canceled".
        labels: canonical names, as the job has them; none to segment.
        model: the model's name.
        version: the hash of the model's content.
        classes: what became of each class; none before the end.
        ignored: share of the pixels that are 255, in [0, 1].
        document: all that the service says, in JSON's types.
    """

    id: str
    task: str
    status: str
    labels: tuple[str, ...]
    model: str
    version: str
    classes: tuple[ClassResult, ...]
    ignored: float
    document: Mapping[str, Any] = field(repr=False)

    @property
    def ended(self) -> bool:
        """Whether it is finished, failed or canceled."""
        return self.status in ENDED

    @property
    def progress(self) -> tuple[str, float] | None:
        """The stage of a running job and the fraction of all work that is done, if it has said so."""
        said = self.document.get("progress")
        return (str(said["stage"]), float(said["fraction"])) if said else None

    def finished(self) -> Job:
        """Return the job itself.

        Raises:
            JobFailed: if it has failed.
            JobCanceled: if it is canceled.
        """
        if self.status == "canceled":
            raise JobCanceled(f"job {self.id} was canceled", kind="job-canceled")
        if self.status == "failed":
            failure = self.document.get("failure", {})
            detail = str(failure.get("detail", "the job failed"))
            raise JobFailed(detail, kind="job-failed", members=failure)
        return self


@dataclass(frozen=True)
class Model:
    """A model that can be asked for.

    Attributes:
        name: to ask for it by.
        version: the hash of its content.
        ready: whether a live worker has it in memory.
        default: whether ``pseudo_mask`` takes it unless another is named.
        can_segment: whether ``segment`` takes it.
        classes: what may be labeled, with synonyms.
        defaults: how its pseudo masks are made unless a request says otherwise.
        document: all that the service says, in JSON's types; of one model alone ``nearest_nouns`` too.
    """

    name: str
    version: str
    ready: bool
    default: bool
    can_segment: bool
    classes: ClassList = field(repr=False)
    defaults: MaskOptions = field(repr=False)
    document: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Batch:
    """Where a batch stands.

    Attributes:
        id: of the batch.
        status: "queued", "running", "finished" or "canceled".
        counts: of its photos: total, waiting, queued, running, finished, failed, canceled.
        document: all that the service says, in JSON's types.
    """

    id: str
    status: str
    counts: Mapping[str, int]
    document: Mapping[str, Any] = field(repr=False)

    @property
    def ended(self) -> bool:
        """Whether nothing of it is done any more."""
        return self.status in ENDED


def read(answer: httpx.Response, parse: Callable[[Any], T]) -> T:
    """Parse an answer that is JSON.

    Raises:
        SemplesError: if it is something else, as what a page or a proxy says.
    """
    try:
        return parse(answer.json())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        kind = answer.headers.get("content-type", "nothing")
        raise SemplesError(
            f"expected an answer of the service to {answer.request.url.path}, got {kind[:80]}: is the URL right?",
            status=answer.status_code,
        ) from error


def job(document: Any) -> Job:
    """Read a job's document."""
    return Job(
        id=str(document["id"]),
        task=str(document["task"]),
        status=str(document["status"]),
        labels=tuple(document["labels"]),
        model=str(document["model"]["name"]),
        version=str(document["model"]["version"]),
        classes=tuple(map(_class, document.get("classes") or ())),
        ignored=float(document.get("ignored") or 0.0),
        document=document,
    )


def _class(said: Mapping[str, Any]) -> ClassResult:
    box = said.get("box")
    return ClassResult(
        index=int(said["index"]),
        name=str(said["name"]),
        area=float(said["area"]),
        confidence=said.get("confidence"),
        alignment_class=said.get("alignment_class"),
        alignment_background=said.get("alignment_background"),
        box=tuple(box) if box else None,
        zero_shot=bool(said.get("zero_shot", False)),
    )


def models(document: Any) -> tuple[Model, ...]:
    """Read the list of models."""
    return tuple(model(each, default=document["default"]) for each in document["models"])


def model(document: Any, *, default: str | None = None) -> Model:
    """Read a model's document."""
    said = document["model"]
    classes = (
        ClassInfo(int(each["index"]), str(each["name"]), tuple(each.get("synonyms", ())))
        for each in said["classes"]
    )
    return Model(
        name=str(said["name"]),
        version=str(said["version"]),
        ready=bool(document["ready"]),
        default=said["name"] == default,
        can_segment=bool(said.get("can_segment", False)),
        classes=ClassList(tuple(classes)),
        defaults=MaskOptions(
            refine=str(said["refine"]),
            min_confidence=float(said["min_confidence"]),
            background_threshold=float(said["background_threshold"]),
            class_thresholds=dict(said.get("class_thresholds", {})),
        ),
        document=document,
    )


def batch(document: Any) -> Batch:
    """Read a batch's document."""
    return Batch(str(document["id"]), str(document["status"]), dict(document["counts"]), document)
