"""Options of the mask generator on CLIP's own ViT, shared by configurations, bundles and the network. Free of torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# What photos are full of behind and under the things that people name.
_COMMON_STUFF = (
    "ground", "grass", "field", "soil", "sand", "snow", "rock", "mountain", "hill",
    "tree", "forest", "bush", "leaves", "sky", "cloud", "water", "river", "lake", "sea", "beach",
    "road", "street", "pavement", "railway track", "bridge", "harbor", "building", "house", "roof", "wall", "fence",
    "window", "door", "floor", "carpet", "ceiling", "stairs", "curtain", "shelf", "sign", "pole", "lamp",
)  # fmt: skip


class ClipVitOptions(BaseModel):
    """How class maps are read out of a CLIP's ViT.

    Attributes:
        method: "gradcam" (CLIP-ES) differentiates the last block, "dense" (NACLIP) compares each patch with the texts.
        background: what competes with a photo's labels: the texts, the background prompts of its classes that stage (b)
            has learned, or both; "prompts" means the texts until there are any.
        background_texts: names of common stuff; one that is a class of the photo is left out there.
        template: of class and background texts, with {} for the name; CLIP-ES's best one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["gradcam", "dense"] = "gradcam"
    background: Literal["texts", "prompts", "both"] = "both"
    background_texts: Annotated[tuple[str, ...], Field(min_length=1)] = _COMMON_STUFF
    template: str = "a clean origami {}."

    @model_validator(mode="after")
    def _has_a_place_for_the_name(self) -> Self:
        if self.template.count("{}") != 1 or self.template.count("{") != 1:
            raise ValueError(f"expected a template with one {{}} for the name, got {self.template!r}")
        return self

    def caption(self, name: str) -> str:
        """Return the text about a class or a background."""
        return self.template.format(name)
