"""The manifest of a bundle, ``bundle.yaml``, and how bundles are found. Free of torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from models.config import Frozen, GeneratorSpec, InferenceConfig, SegmentConfig, SegmenterSpec
from models.data.classes import ON_CLIP, ClassInfo, ClassList
from models.inference.masks import CannotSegmentError, MaskOptions
from models.io import hash_file

MANIFEST = "bundle.yaml"
GENERATOR_FILE = "generator.safetensors"
PROMPTS_FILE = "prompts.safetensors"
TOWER_FILE = "clip_image.safetensors"
TEXT_TOWER_FILE = "clip_text.safetensors"
SEGMENTER_FILE = "segmenter.safetensors"


class BundleError(ValueError):
    """A folder is not a bundle that can be loaded."""


_CLASSES = TypeAdapter(list[ClassInfo])


def _to_class_list(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return ClassList(tuple(_CLASSES.validate_python(value)))


def _from_class_list(value: ClassList) -> list[dict[str, Any]]:
    return [{"index": info.index, "name": info.name, "synonyms": list(info.synonyms)} for info in value.classes]


_Classes = Annotated[ClassList, BeforeValidator(_to_class_list), PlainSerializer(_from_class_list, return_type=list)]


class ImageTowerSpec(Frozen):
    """How to build CLIP's image tower before its weights are loaded."""

    config: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class TextTowerSpec(Frozen):
    """How to build CLIP's text tower before its weights are loaded."""

    config: dict[str, Any]


class Measurement(Frozen):
    """One measured figure, the data that it was measured on, and the evaluation protocol."""

    name: str
    value: float
    data: str
    rule: Literal["fixed", "oracle"]


@dataclass(frozen=True)
class NearNoun:
    """A noun and the cosine of its caption, "a photo of {noun}.", to a background prompt."""

    noun: str
    similarity: float


class Manifest(Frozen):
    """The content of ``bundle.yaml``."""

    format: Literal[2]  # format 1 had generators with their own affinity steps
    name: str
    licence: str
    trained_on: str
    stage: str
    classes: _Classes
    inference: InferenceConfig
    generator: GeneratorSpec
    image_tower: ImageTowerSpec | None
    text_tower: TextTowerSpec | None = None
    segmenter: SegmenterSpec | None = None
    segment: SegmentConfig | None = None
    metrics: tuple[Measurement, ...] = ()
    nearest_nouns: dict[str, tuple[NearNoun, ...]] = Field(default_factory=dict)
    files: dict[str, str]  # file name → SHA-256

    @field_validator("name")
    @classmethod
    def _has_no_colon(cls, name: str) -> str:
        if ":" in name:  # a worker's queues have names of the form NAME and NAME:batch
            raise ValueError(f"expected a name without a colon, got {name!r}")
        return name

    @model_validator(mode="after")
    def _lists_its_files(self) -> Self:
        needed = {GENERATOR_FILE, PROMPTS_FILE} | ({TOWER_FILE} if self.image_tower else set())
        if (self.segmenter is None) != (self.segment is None):
            raise ValueError("expected segmenter and segment together, got one of them")
        if self.segmenter:
            needed.add(SEGMENTER_FILE)
        if self.text_tower:
            needed.add(TEXT_TOWER_FILE)
        if self.segmenter and (unknown := {*self.segmenter.untaught, *self.segmenter.masks} - {*self.classes.names}):
            raise ValueError(f"expected classes of the bundle in segmenter, got {sorted(unknown)}")
        # Empty only while a bundle is written: read_info refuses a manifest without hashes.
        if self.files and set(self.files) != needed:
            raise ValueError(f"expected files {sorted(needed)}, got {sorted(self.files)}")
        return self

    @model_validator(mode="after")
    def _can_use_its_text_tower(self) -> Self:
        of_clip = self.image_tower is not None and self.generator.kind in ON_CLIP
        if self.text_tower and not of_clip:
            raise ValueError(
                f"expected a text tower beside CLIP's image tower and a {' or '.join(ON_CLIP)} generator on it, "
                f"got a {self.generator.kind} generator"
            )
        return self


class BundleInfo(Manifest):
    """A manifest with the bundle's version: 12 hexadecimal digits of the SHA-256 of ``bundle.yaml``."""

    version: str

    @property
    def kind(self) -> str:
        """The mask generator's kind."""
        return self.generator.kind

    @property
    def mask_options(self) -> MaskOptions:
        """Default options of pseudo masks."""
        return MaskOptions(
            refine=self.inference.refine,
            min_confidence=self.inference.min_confidence,
            background_threshold=self.inference.background_threshold,
            class_thresholds=self.inference.class_thresholds,
            threshold_slope=self.inference.threshold_slope,
        )

    @property
    def segment_options(self) -> MaskOptions:
        """Default options of the segmenter's masks.

        Raises:
            CannotSegmentError: if there is no segmenter.
        """
        if self.segment is None:
            raise CannotSegmentError(f"expected a bundle with a segmenter, got {self.name!r} without one")
        return MaskOptions(self.segment.refine, self.segment.min_confidence)

    @property
    def can_segment(self) -> bool:
        """Whether it has a segmenter, which needs no labels."""
        return self.segmenter is not None

    @property
    def untaught(self) -> tuple[str, ...]:
        """Names of the classes that the segmenter does not know: too few photos showed them."""
        return self.segmenter.untaught if self.segmenter else ()

    @property
    def open_vocabulary(self) -> bool:
        """Whether it accepts labels that it was not trained on."""
        return self.text_tower is not None

    def to_json(self) -> dict[str, Any]:
        """Return the description for users, in JSON's types: a ModelDescription and more."""
        built = {"generator", "image_tower", "text_tower", "segmenter", "segment"}
        shown = self.model_dump(mode="json", exclude={"format", "files", *built})
        options, segment = self.mask_options, self.segment
        return {
            **shown,
            "kind": self.kind,
            "background_threshold": options.background_threshold,
            "class_thresholds": options.class_thresholds,
            "threshold_slope": options.threshold_slope,
            "min_confidence": options.min_confidence,
            "refine": options.refine,
            "can_segment": self.can_segment,
            "untaught": list(self.untaught),
            "open_vocabulary": self.open_vocabulary,
            "segment": segment and {"refine": segment.refine, "min_confidence": segment.min_confidence},
        }


class _SegmentDefaults(BaseModel):
    """Default options of a model's segmenter."""

    model_config = ConfigDict(frozen=True)

    refine: str = "none"
    min_confidence: float = 0.0


class ModelDescription(BaseModel):
    """A model's description in JSON types, for processes without torch and bundle files.

    Unknown fields are ignored, so that old and new processes work together.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    version: str
    kind: str
    classes: tuple[ClassInfo, ...]
    refine: str
    min_confidence: float
    background_threshold: float
    class_thresholds: dict[str, float] = {}
    threshold_slope: float = 0.0
    can_segment: bool = False
    untaught: tuple[str, ...] = ()  # classes that the segmenter does not know
    segment: _SegmentDefaults | None = None
    open_vocabulary: bool = False
    stage: str = ""
    licence: str = ""
    trained_on: str = ""
    metrics: tuple[dict[str, Any], ...] = ()

    def class_list(self) -> ClassList:
        """Return the classes as a checked list."""
        return ClassList(self.classes)

    @property
    def mask_options(self) -> MaskOptions:
        """Default options of pseudo masks."""
        return MaskOptions(
            refine=self.refine,
            min_confidence=self.min_confidence,
            background_threshold=self.background_threshold,
            class_thresholds=self.class_thresholds,
            threshold_slope=self.threshold_slope,
        )

    @property
    def segment_options(self) -> MaskOptions:
        """Default options of the segmenter's masks."""
        segment = self.segment or _SegmentDefaults()
        return MaskOptions(segment.refine, segment.min_confidence)


def bundle_paths(folder: Path) -> list[Path]:
    """Return where the files of a bundle are, those that not every bundle has included."""
    names = (MANIFEST, GENERATOR_FILE, PROMPTS_FILE, TOWER_FILE, SEGMENTER_FILE, TEXT_TOWER_FILE)
    return [folder / name for name in names]


def find_bundle(name_or_path: str) -> Path:
    """Return the folder of a shipped bundle by name, or of any bundle by path.

    Raises:
        BundleError: if there is no such bundle.
    """
    root = Path(str(files("models").joinpath("bundles")))
    for folder in (root / name_or_path, Path(name_or_path)):
        if (folder / MANIFEST).is_file():
            return folder
    if (Path(name_or_path) / "bundle" / MANIFEST).is_file():  # the work directory of run-all
        raise BundleError(
            f"expected a folder with {MANIFEST}, got {name_or_path!r}; did you mean {name_or_path}/bundle?"
        )
    shipped = sorted(path.parent.name for path in root.glob(f"*/{MANIFEST}"))
    raise BundleError(
        f"expected a folder with {MANIFEST} or one of {', '.join(shipped) or 'none shipped'}, got {name_or_path!r}"
    )


def check_hashes(info: BundleInfo, folder: Path) -> None:
    """Compare the hash of each file of a bundle with its manifest.

    Raises:
        BundleError: if a file is missing or changed.
    """
    for name, expected in info.files.items():
        try:
            found = hash_file(folder / name)
        except OSError as error:
            raise BundleError(f"expected {folder / name}, got {error}") from error
        if found != expected:
            raise BundleError(f"expected {folder / name} with SHA-256 {expected[:12]}…, got {found[:12]}…")


def read_info(folder: Path) -> BundleInfo:
    """Read and check ``bundle.yaml`` alone.

    Raises:
        BundleError: if it is missing or malformed.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = yaml.safe_load(content)
        version = hashlib.sha256(content).hexdigest()[:12]
        if not manifest.get("files"):
            raise TypeError("no hashes of its files")
        return BundleInfo.model_validate({**manifest, "version": version})
    except (AttributeError, OSError, RecursionError, TypeError, yaml.YAMLError) as error:
        raise BundleError(f"expected a readable {MANIFEST} in {folder}, got {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{folder / MANIFEST}: {place}: {first['msg']}") from error
