"""Request forms and queries, and their checks: everything that is wrong with a request is found before the queue."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Final
from urllib.request import parse_http_list

from fastapi import Header, Query, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from models.data.classes import UnknownLabelError, Vocabulary, split_labels, why_closed, with_open_labels
from models.data.images import check_image
from models.inference.masks import MaskOptions, fill_defaults
from models.refine import REFINERS
from service.api.errors import ProblemError, invalid_field
from worker.queue.registry import ModelInfo
from worker.queue.schema import JobRequest, Task
from worker.storage import blob_key
from worker.webhooks.store import Recipient
from worker.webhooks.urls import CallbackRefusedError, Resolve, find_target, resolve_host

_MAX_WAIT_SECONDS: Final = 60.0

_QUALITY: Final = re.compile(r"0(?:\.\d*)?|1(?:\.0*)?")
_WAIT: Final = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})\"?", re.IGNORECASE)


class _Thresholds(BaseModel):
    model_config = ConfigDict(extra="forbid")

    min_confidence: float | None = Field(
        default=None, ge=0, lt=1, description="Pixels less sure than this become 255, ignore."
    )


class _Background(BaseModel):
    background_threshold: float | None = Field(
        default=None, gt=0, lt=1, description="The background's score everywhere."
    )
    background_power: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="p of the background's score (1 - max)^p, instead of background_threshold.",
    )


class _MaskForm(_Thresholds):
    """The fields of every post; an unknown field is an error."""

    model: str | None = Field(
        default=None, description="A name from GET /models, which says what is taken without one."
    )
    refine: str | None = Field(
        default=None,
        description=f'"none", or one or several of {", ".join(REFINERS)}, joined by "+".',
        examples=["pamr"],
    )


class ImageForm(_MaskForm):
    """The fields of every post of an image."""

    task: ClassVar[Task]

    image: UploadFile = Field(description="A still JPEG, PNG or WebP.")
    callback_url: str | None = Field(
        default=None,
        description="Where to post a signed webhook when the job has ended; no part of the job itself.",
    )


class PseudoMaskForm(ImageForm, _Background):
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


class SegmentForm(ImageForm):
    """The fields of ``POST /segment``."""

    task = "segment"


class BatchForm(_MaskForm, _Background):
    """The fields of ``POST /batches``, the same for all photos."""

    archive: UploadFile = Field(
        description="A zip of photos and, at its root, their image-level labels; see docs/http.md."
    )


@dataclass(frozen=True)
class CheckedRequest:
    """A valid request, and the size of its image, width times height."""

    request: JobRequest
    pixels: int


def build_request(form: ImageForm, data: bytes, model: ModelInfo, *, max_pixels: int) -> CheckedRequest:
    """Check a form and its image against a model that can do the task, and return the job's request.

    Raises ProblemError, UnknownLabelError or ImageError.
    """
    labels: tuple[str, ...] = ()
    vocabulary: Vocabulary = "closed"
    if isinstance(form, PseudoMaskForm):
        labels = _resolve_labels(form, model)
        # Where all are the model's own classes, an open vocabulary gives the same result, so the same job.
        known = set(labels) <= set(model.class_list().names)
        vocabulary = "closed" if known else "open"
        options = pseudo_mask_options(form, model, labels)
    else:
        options = _fill_defaults(form, model.segment_options)
    header = check_image(data, max_pixels=max_pixels)
    request = JobRequest(
        task=form.task,
        image=blob_key("uploads", data),
        labels=labels,
        options=options,
        model=model.ref,
        vocabulary=vocabulary,
    )
    return CheckedRequest(request, header.width * header.height)


def pseudo_mask_options(form: PseudoMaskForm | BatchForm, model: ModelInfo, labels: tuple[str, ...]) -> MaskOptions:
    """Return a form's options, filled with the model's defaults for these class names; ProblemError if invalid."""
    threshold, power = form.background_threshold, form.background_power
    if threshold is not None and power is not None:
        raise invalid_field("background_power", "expected background_threshold or background_power, got both")
    options = _fill_defaults(form, model.mask_options, background_threshold=threshold, background_power=power)
    # Of these labels alone: the thresholds of others have no part in the result or the job's id.
    known = options.class_thresholds
    return replace(options, class_thresholds={name: known[name] for name in labels if name in known})


def _fill_defaults(form: _MaskForm, defaults: MaskOptions, **background: float | None) -> MaskOptions:
    try:
        return fill_defaults(defaults, refine=form.refine or None, min_confidence=form.min_confidence, **background)
    except ValueError as error:
        raise invalid_field("refine", str(error)) from error


def _resolve_labels(form: PseudoMaskForm, model: ModelInfo) -> tuple[str, ...]:
    """Return the class names of a form's labels in canonical order, open ones last."""
    labels, classes = split_labels(form.labels), model.class_list()
    known = all(classes.knows(each) for each in labels)
    if form.vocabulary == "open" and not known and not model.open_vocabulary:
        detail = f"model {model.name!r} knows its own classes alone: {why_closed(model.kind)}"
        raise ProblemError("closed-vocabulary", detail)
    try:
        if form.vocabulary == "open":
            classes = with_open_labels(classes, labels)
        return tuple(each.name for each in classes.resolve(labels))
    except UnknownLabelError:
        raise
    except ValueError as error:
        raise invalid_field("labels", str(error)) from error


@dataclass(frozen=True)
class ResponsePreferences:
    """Seconds that a post waits for its result, and whether the mask itself is the response."""

    wait: float
    png: bool


def response_preferences(
    wait: Annotated[
        float | None,
        Query(ge=0, le=_MAX_WAIT_SECONDS, description="Seconds to wait for the result."),
    ] = None,
    prefer: Annotated[str | None, Header(description="wait=N: as ?wait=N.")] = None,
    accept: Annotated[str, Header(description="Prefers image/png, or image/*: the mask, if waited for.")] = "*/*",
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="Accepted and not needed: the same image and options are the same job.",
        ),
    ] = None,
) -> ResponsePreferences:
    """Return what a post's query and headers ask for."""
    del idempotency_key
    return ResponsePreferences(_parse_wait(wait, prefer), _wants_png(accept))


def _parse_wait(query: float | None, prefer: str | None) -> float:
    """Return the seconds to wait: of the query, or of a ``Prefer: wait=N`` header up to the longest wait."""
    if query is not None:
        return query
    match = _WAIT.search(prefer or "")
    return min(float(match[1]), _MAX_WAIT_SECONDS) if match else 0.0


def _wants_png(accept: str) -> bool:
    """Return whether an Accept header prefers PNG to JSON.

    The more specific range decides a type's quality (RFC 9110, 12.5.1). Of equal qualities the one by the more specific
    range is preferred, then JSON.
    """
    ranges = [_media_range(each) for each in parse_http_list(accept)]
    png, json = (_preference(kind, ranges) for kind in ("image/png", "application/json"))
    return png[0] > 0 and png > json


def _media_range(text: str) -> tuple[str, float]:
    """Return a media range and its quality, 1 where it says none."""
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    quality = next((value for name, _, value in (each.partition("=") for each in parameters) if name == "q"), "1")
    return kind, float(quality) if _QUALITY.fullmatch(quality) else 0.0


def _preference(kind: str, ranges: Sequence[tuple[str, float]]) -> tuple[float, int]:
    """Return a media type's quality, and how specific the range is that gives it."""
    names = ("*/*", f"{kind.partition('/')[0]}/*", kind)
    found = [(names.index(name), quality) for name, quality in ranges if name in names]
    specific, quality = max(found, default=(0, 0.0))
    return quality, specific


def require_multipart(content_type: Annotated[str, Header()] = "") -> None:
    """Refuse a body of another type, which would look like an empty form."""
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        got = content_type[:80] or "nothing"
        raise ProblemError("not-multipart", f"expected multipart/form-data, got {got}")


@dataclass(frozen=True)
class CallbackRules:
    """Which callbacks are accepted."""

    offered: bool  # whether webhooks are sent, which needs a secret
    allow_private: bool = False  # whether to addresses outside the internet, too
    resolve: Resolve = resolve_host

    async def check(self, url: str | None, *, root: str) -> Recipient | None:
        """Return the subscription of a form's ``callback_url``, None without one; ProblemError if not accepted.

        The janitor checks the URL again before it sends. ``root`` is the prefix of the API's paths that a client sees.
        """
        if not url:
            return None
        if not self.offered:
            raise invalid_field("callback_url", "this service sends no webhooks: it has no webhook secret")
        try:
            await find_target(url, allow_private=self.allow_private, resolve=self.resolve)
        except CallbackRefusedError as error:
            raise invalid_field("callback_url", str(error)) from error
        return Recipient(url=url, root=root)


class ThresholdOverrides(_Thresholds, _Background):
    """Thresholds that differ from the job's; an unknown one is an error."""

    def apply(self, request: JobRequest) -> MaskOptions:
        """Return a job's options with these overrides; ProblemError if they do not go together."""
        background = self.model_dump(include={"background_threshold", "background_power"}, exclude_none=True)
        if len(background) == 2:
            raise invalid_field("background_power", "expected one rule for the background, got two")
        if background and request.task == "segment":
            raise invalid_field(next(iter(background)), "a segmenter decides itself what is background")
        return fill_defaults(request.options, **background, min_confidence=self.min_confidence)


class NamedOverrides(ThresholdOverrides):
    """Overrides for annotations, which also name their image."""

    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        # Characters that XML cannot hold.
        pattern=r"^[^\u0000-\u001f\u007f-\u009f\ufffe\uffff]+$",
        description="What the annotations call the image: a file name or URL. The job's id if left out.",
        examples=["photo.jpg"],
    )
