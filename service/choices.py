"""How a finished job's scores are decided anew, as a query says it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from service.errors import invalid_field
from service.fields import BackgroundPower, BackgroundThreshold, MinConfidence
from worker.queue.schema import JobRequest, Options


class Choices(BaseModel):
    """What shall be other than in the job; a misspelt one is an error, not a silent default."""

    model_config = ConfigDict(extra="forbid")

    background_threshold: BackgroundThreshold = None
    background_power: BackgroundPower = None
    min_confidence: MinConfidence = None

    def applied_to(self, request: JobRequest) -> Options:
        """Return a job's options with what was chosen.

        Raises:
            ProblemError: if two rules for the background are chosen, or one for a job that has none.
        """
        background = self.model_dump(
            include={"background_threshold", "background_power"}, exclude_none=True
        )
        field = next(iter(background), "")
        if len(background) == 2:
            raise invalid_field("background_power", "expected one rule for the background, got two")
        if background and request.task == "segment":
            raise invalid_field(field, "a segmenter decides itself what is background")
        changes = self.model_dump(include={"min_confidence"}, exclude_none=True)
        if background:
            # As if posted: a rule of one's own replaces the model's, with the exceptions to it.
            nothing = {"background_threshold": None, "background_power": None}
            changes |= {**nothing, **background, "class_thresholds": {}}
        return request.options.model_copy(update=changes)


class NamedChoices(Choices):
    """The same for annotations, which also name the image that they are about."""

    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        # What XML cannot hold is in no file name that is meant well.
        pattern=r"^[^\u0000-\u001f\u007f-\u009f\ufffe\uffff]+$",
        description="What the annotations call the image: a file name or URL. The job's id if left out.",
        examples=["photo.jpg"],
    )


ChoicesQuery = Annotated[Choices, Query()]
NamedChoicesQuery = Annotated[NamedChoices, Query()]
