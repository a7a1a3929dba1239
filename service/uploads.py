"""From a form to a checked request: what is wrong with an upload is said here, before any queue."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

from models.data.classes import UnknownLabelError
from models.images import check_image
from models.refine.names import parse_chain
from service.errors import ProblemError
from worker.blobs import blob_key
from worker.protocol import JobRequest, ModelInfo, Options

_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})\"?", re.IGNORECASE)


class PseudoMaskForm(BaseModel):
    """The fields of ``POST /pseudo-mask``; an unknown one is an error, not a silent default."""

    model_config = ConfigDict(extra="forbid")

    image: UploadFile = Field(description="A still JPEG, PNG or WebP.")
    labels: list[str] = Field(
        description="What the image shows: the field repeated, or names with commas between them."
    )
    model: str | None = Field(default=None, description="A name from GET /models.")
    refine: str | None = Field(
        default=None, description='"none", "pamr", or several joined by "+".', examples=["pamr"]
    )
    background_threshold: float | None = Field(default=None, gt=0, lt=1)
    min_confidence: float | None = Field(default=None, ge=0, lt=1)


@dataclass(frozen=True)
class Upload:
    """A form's content: the image's bytes and the raw choices."""

    data: bytes
    labels: tuple[str, ...]
    model: str | None
    refine: str | None
    background_threshold: float | None
    min_confidence: float | None


async def read_form(form: PseudoMaskForm) -> Upload:
    """Take the bytes and the choices out of a form."""
    return Upload(
        data=await form.image.read(),
        labels=split_labels(form.labels),
        model=form.model or None,
        refine=form.refine or None,
        background_threshold=form.background_threshold,
        min_confidence=form.min_confidence,
    )


def split_labels(fields: list[str]) -> tuple[str, ...]:
    """Split repeated fields and commas into labels; empty ones do not count."""
    return tuple(label for field in fields for part in field.split(",") if (label := part.strip()))


def build_request(upload: Upload, model: ModelInfo, *, max_pixels: int) -> JobRequest:
    """Check an upload against a model and return what its worker is asked to do.

    Raises:
        ProblemError: if a label list or an option is out of range.
        UnknownLabelError: if the model knows a label not.
        ImageError: if the image is not one that we take.
    """
    try:
        classes = model.class_list().resolve(upload.labels)
    except UnknownLabelError:
        raise
    except ValueError as error:
        raise _invalid("labels", error) from error
    options = _options(upload, model)
    check_image(upload.data, max_pixels=max_pixels)
    return JobRequest(
        image=blob_key("uploads", upload.data),
        labels=tuple(each.name for each in classes),
        options=options,
        model=model.ref,
    )


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


def _options(upload: Upload, model: ModelInfo) -> Options:
    refine = upload.refine if upload.refine is not None else model.refine
    try:
        parse_chain(refine)
    except ValueError as error:
        raise _invalid("refine", error) from error
    threshold, confidence = upload.background_threshold, upload.min_confidence
    return Options(
        refine=refine,
        background_threshold=model.background_threshold if threshold is None else threshold,
        min_confidence=model.min_confidence if confidence is None else confidence,
    )


def _invalid(field: str, error: ValueError) -> ProblemError:
    errors = [{"field": field, "message": str(error)}]
    return ProblemError("invalid-request", f"{field}: {error}", errors=errors)
