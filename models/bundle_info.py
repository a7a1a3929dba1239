"""What a bundle says of itself: ``bundle.yaml``, checked. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from models.config import InferenceConfig
from models.data.classes import ClassInfo, ClassList

FORMAT = 1


class BundleError(ValueError):
    """A folder that is not a bundle we can load; the message says what was expected and found."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _to_class_list(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return ClassList(
        tuple(ClassInfo(**{**item, "synonyms": tuple(item["synonyms"])}) for item in value)
    )


def _from_class_list(value: ClassList) -> list[dict[str, Any]]:
    return [
        {"index": info.index, "name": info.name, "synonyms": list(info.synonyms)}
        for info in value.classes
    ]


Classes = Annotated[
    ClassList, BeforeValidator(_to_class_list), PlainSerializer(_from_class_list, return_type=list)
]


class GeneratorSpec(_Frozen):
    """How to build the mask generator before its weights are loaded."""

    kind: Literal["cnn", "zero_shot"]
    backbone: str
    output_stride: int
    affinity_steps: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class ImageTowerSpec(_Frozen):
    """How to build CLIP's image tower before its weights are loaded."""

    config: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Measurement(_Frozen):
    """One measured figure, with what it takes to read it honestly."""

    name: str
    value: float
    data: str
    rule: Literal["fixed", "oracle"]


class Noun(_Frozen):
    """A noun near to what a background prompt learned."""

    noun: str
    similarity: float


class Manifest(_Frozen):
    """The content of ``bundle.yaml``."""

    format: Literal[1]
    name: str
    licence: str
    trained_on: str
    stage: str
    classes: Classes
    inference: InferenceConfig
    generator: GeneratorSpec
    image_tower: ImageTowerSpec | None
    metrics: tuple[Measurement, ...] = ()
    nearest_nouns: dict[str, tuple[Noun, ...]] = {}
    files: dict[str, str]  # file name → SHA-256


class BundleInfo(Manifest):
    """A manifest and the version that its content gives.

    Attributes:
        version: first 12 hexadecimal digits of the SHA-256 of ``bundle.yaml``, which holds the others' hashes.
    """

    version: str

    @property
    def kind(self) -> str:
        """The mask generator's kind."""
        return self.generator.kind

    @property
    def background_threshold(self) -> float:
        """The background's score, unless a request says otherwise."""
        return self.inference.background_threshold

    @property
    def min_confidence(self) -> float:
        """Below it pixels are ignored, unless a request says otherwise."""
        return self.inference.min_confidence

    @property
    def refine(self) -> str:
        """The refiner chain, unless a request says otherwise."""
        return self.inference.refine

    def to_json(self) -> dict[str, Any]:
        """Return what users may want to know, in JSON's types; not how to build it."""
        shown = self.model_dump(
            mode="json", exclude={"format", "generator", "image_tower", "files"}
        )
        defaults = {
            "background_threshold": self.background_threshold,
            "min_confidence": self.min_confidence,
            "refine": self.refine,
        }
        return {**shown, "kind": self.kind, **defaults}
