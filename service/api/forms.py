"""From a form to a checked request: what is wrong with an upload is said here, before any queue."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

from models.data.classes import UnknownLabelError, Vocabulary, why_closed, with_open_labels
from models.data.images import check_image
from models.data.labels import split_labels
from models.refine import REFINERS, parse_chain
from service.api.errors import ProblemError, invalid_field
from service.api.schemas import BackgroundPower, BackgroundThreshold, MinConfidence
from worker.queue.registry import ModelInfo, SegmentDefaults
from worker.queue.schema import JobRequest, Options, Task
from worker.storage import blob_key
from worker.webhooks.store import Recipient
from worker.webhooks.urls import CallbackRefusedError, Resolve, find_target, resolve_host

_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})\"?", re.IGNORECASE)


class MaskForm(BaseModel):
    """What every post takes; an unknown field is an error, not a silent default."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(
        default=None, description="A name from GET /models, which says what is taken without one."
    )
    refine: str | None = Field(
        default=None,
        description=f'"none", or one or several of {", ".join(REFINERS)}, joined by "+".',
        examples=["pamr"],
    )
    min_confidence: MinConfidence = None


class ImageForm(MaskForm):
    """What every post of an image takes."""

    task: ClassVar[Task]

    image: UploadFile = Field(description="A still JPEG, PNG or WebP.")
    callback_url: str | None = Field(
        default=None,
        description="Where to post a signed webhook when the job has ended; no part of the job itself.",
    )


class PseudoMaskForm(ImageForm):
    """The fields of ``POST /pseudo-mask``."""

    task = "pseudo_mask"

    labels: list[str] = Field(
        min_length=1,
        description="What the image shows: the field repeated, or names with commas or semicolons between them.",
    )
    vocabulary: Vocabulary = Field(
        default="closed",
        description='"open": labels may also be others than the model\'s classes, if it has `open_vocabulary`.',
    )
    background_threshold: BackgroundThreshold = None
    background_power: BackgroundPower = None


class BatchForm(MaskForm):
    """The fields of ``POST /batches``, the same for all photos."""

    archive: UploadFile = Field(
        description="A zip of photos and, at its root, their image-level labels; see docs/http.md."
    )
    background_threshold: BackgroundThreshold = None
    background_power: BackgroundPower = None


class SegmentForm(ImageForm):
    """The fields of ``POST /segment``."""

    task = "segment"


@dataclass(frozen=True)
class Checked:
    """A request that will do, and the size of its image, width times height, which is no part of it."""

    request: JobRequest
    pixels: int


def build_request(form: ImageForm, data: bytes, model: ModelInfo, *, max_pixels: int) -> Checked:
    """Check a form against a model and return what its worker is asked to do.

    Args:
        form: the choices.
        data: the image's bytes.
        model: one that can do the form's task.
        max_pixels: largest image, width times height.

    Raises:
        ProblemError: if the labels are too many or none, will not do, or an option is out of range; or an open
            vocabulary is wanted that the model does not have.
        UnknownLabelError: if the model knows a label not.
        ImageError: if the image is not one that we take.
    """
    labels: tuple[str, ...] = ()
    vocabulary: Vocabulary = "closed"
    if isinstance(form, PseudoMaskForm):
        labels = _labels(form, model)
        # Where all are the model's own, the answer is that of a closed vocabulary, and so is the job.
        known = set(labels) <= set(model.class_list().names)
        vocabulary = "closed" if known else "open"
        options = pseudo_mask_options(form, model, labels)
    else:
        defaults = model.segment or SegmentDefaults()
        options = _options(form, defaults.refine, defaults.min_confidence)
    header = check_image(data, max_pixels=max_pixels)
    request = JobRequest(
        task=form.task,
        image=blob_key("uploads", data),
        labels=labels,
        options=options,
        model=model.ref,
        vocabulary=vocabulary,
    )
    return Checked(request, header.width * header.height)


def parse_wait(query: float | None, prefer: str | None, *, most: float) -> float:
    """Return how long to wait for the result, in seconds: the query's word, or ``Prefer: wait=N``.

    A preference beyond what we allow is cut; it is no more than that.
    """
    if query is not None:
        return query
    match = _WAIT.search(prefer or "")
    return min(float(match[1]), most) if match else 0.0


def wants_png(accept: str) -> bool:
    """Return whether an Accept header asks for a PNG and not for a JSON document."""
    kinds = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return "image/png" in kinds and "application/json" not in kinds


def _labels(form: PseudoMaskForm, model: ModelInfo) -> tuple[str, ...]:
    """Return the names of the classes that a form's labels mean, in canonical order; open ones come last."""
    labels, known = split_labels(form.labels), model.class_list()
    strange = not all(known.knows(each) for each in labels)
    if form.vocabulary == "open" and strange and not model.open_vocabulary:
        detail = f"model {model.name!r} knows its own classes alone: {why_closed(model.kind)}"
        raise ProblemError("closed-vocabulary", detail)
    try:
        if form.vocabulary == "open":
            known = with_open_labels(known, labels)
        classes = known.resolve(labels)
    except UnknownLabelError:
        raise
    except ValueError as error:
        raise invalid_field("labels", str(error)) from error
    return tuple(each.name for each in classes)


def pseudo_mask_options(
    form: PseudoMaskForm | BatchForm, model: ModelInfo, labels: tuple[str, ...]
) -> Options:
    """Return the options with the model's background rule, unless the form names its own.

    Args:
        form: the choices.
        model: whose defaults fill them up.
        labels: class names in canonical order.

    Raises:
        ProblemError: if an option is out of range, or two rules are named.
    """
    threshold, power = form.background_threshold, form.background_power
    if threshold is not None and power is not None:
        raise invalid_field(
            "background_power", "expected background_threshold or background_power, got both"
        )
    by_class: dict[str, float] = {}
    if threshold is None and power is None:
        threshold, known = model.background_threshold, model.class_thresholds
        # Of the labels alone: what others would get has no part in the result, nor in the job's id.
        by_class = {name: known[name] for name in labels if name in known}
    background = {"background_threshold": threshold, "background_power": power}
    options = _options(form, model.refine, model.min_confidence)
    return options.model_copy(update={**background, "class_thresholds": by_class})


def _options(form: MaskForm, refine: str, min_confidence: float) -> Options:
    """Return what all posts have in common, with defaults where the form says nothing."""
    chain = form.refine or refine
    try:
        parse_chain(chain)
    except ValueError as error:
        raise invalid_field("refine", str(error)) from error
    confidence = min_confidence if form.min_confidence is None else form.min_confidence
    return Options(refine=chain, min_confidence=confidence)


# Whether a ``callback_url`` is one that we call; the janitor asks the same again before it does.

FIELD = "callback_url"


@dataclass(frozen=True)
class CallbackRules:
    """What this service takes for a callback.

    Attributes:
        offered: whether webhooks are sent at all, for which a secret is needed.
        allow_private: whether they may go to addresses that are not on the internet.
        resolve: finds a host's addresses.
    """

    offered: bool
    allow_private: bool = False
    resolve: Resolve = resolve_host

    async def recipient(self, url: str | None, *, root: str) -> Recipient | None:
        """Return who is to be told, or None if a form names nobody.

        Args:
            url: the form's.
            root: what the paths of the API begin with, as the client sees them.

        Raises:
            ProblemError: if the URL is none that we call.
        """
        if not url:
            return None
        if not self.offered:
            raise invalid_field(FIELD, "this service sends no webhooks: it has no webhook secret")
        try:
            await find_target(url, allow_private=self.allow_private, resolve=self.resolve)
        except CallbackRefusedError as error:
            raise invalid_field(FIELD, str(error)) from error
        return Recipient(url=url, root=root)
