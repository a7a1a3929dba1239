"""Fields that several requests share, so that their bounds and words are the same everywhere."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

BackgroundThreshold = Annotated[
    float | None, Field(gt=0, lt=1, description="The background's score everywhere.")
]
BackgroundPower = Annotated[
    float | None,
    Field(
        gt=0,
        le=10,
        description="p of the background's score (1 - max)^p, instead of background_threshold.",
    ),
]
MinConfidence = Annotated[
    float | None, Field(ge=0, lt=1, description="Pixels less sure than this become 255, ignore.")
]
