"""One run as one HTML file: what it is, how it trained, what its masks are like. No script, nothing from elsewhere."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel

from models.bundle import load_bundle
from models.bundle_info import BundleInfo, Noun
from models.config import dump_config
from models.data.sample import Sample
from models.files import software_version
from models.json_files import write_atomically
from models.predictor import Predictor
from models.reports import curve
from models.reports.masks import masks_part, options_in_words
from models.reports.pictures import choose, photo_parts
from models.reports.training import stage_parts
from models.reports.truth import truth_part
from models.run import Run

PHOTOS: Final = 6
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy")


@dataclass(frozen=True)
class Sources:
    """Where a report finds what the run's work directory does not say; the page does without what is not there.

    Attributes:
        samples: the run's photos.
        masks: output folder of make-pseudo-masks.
        bundle: of the run, for pictures and for what the prompts learned.
        ground_truth: folder of ``STEM.png``, in the masks' class indices.
    """

    samples: Sequence[Sample]
    masks: Path | None = None
    bundle: Path | None = None
    ground_truth: Path | None = None


@dataclass(frozen=True)
class PromptRow:
    """What a class's background prompt learned, and from how many photos."""

    name: str
    photos: int
    nouns: tuple[Noun, ...]


def write_report(
    run: Run,
    sources: Sources,
    output: Path,
    *,
    photos: int = PHOTOS,
    on_share: Callable[[float], None] = lambda _: None,
) -> Path:
    """Write the page, and return its path. Equal runs give equal pages: it holds no time and no place.

    Args:
        run: begun, however far it came.
        sources: what else there is.
        output: the HTML file.
        photos: of how many to show pictures.
        on_share: called with the share of the pictures that is made, in [0, 1].

    Raises:
        ValueError: if the bundle, the masks or the ground truth are damaged, or do not belong together.
        OSError: if a file cannot be read or written.
    """
    masks, truth = sources.masks, sources.ground_truth
    predictor = _predictor(run, sources.bundle) if sources.bundle else None
    content = {
        "name": run.config.name,
        "facts": _facts(run, sources.samples),
        "classes": run.classes.names,
        "config": dump_config(run.config),
        "stages": stage_parts(run.work),
        "masks": masks_part(masks) if masks else None,
        "truth": truth_part(masks, truth) if masks and truth else None,
        "has_truth": truth is not None,
        "bundle": predictor.info if predictor else None,
        "options": options_in_words(asdict(predictor.options())) if predictor else "",
        "photos": photo_parts(
            predictor, choose(sources.samples, photos), ground_truth=truth, on_share=on_share
        )
        if predictor
        else (),
        "prompts": _prompts(sources.samples, predictor.info) if predictor else (),
        "frame": curve,
    }
    write_atomically(output, _render(content).encode())
    return output


def _predictor(run: Run, bundle: Path) -> Predictor:
    loaded = load_bundle(bundle, device=run.device)
    if loaded.info.classes.names != run.classes.names:
        raise ValueError(f"expected a bundle with the run's classes, got {bundle} with others")
    return Predictor(loaded)


def _render(content: Mapping[str, Any]) -> str:
    # Names of classes and files come from outside: everything is escaped.
    environment = Environment(
        loader=PackageLoader("models", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(content)


def _facts(run: Run, samples: Sequence[Sample]) -> dict[str, str]:
    config = run.config
    labeled = sum(bool(each.channels) for each in samples)
    return {
        "CLIP": _in_words(config.clip),
        "mask generator": _in_words(config.generator),
        "segmenter": _in_words(config.segmenter),
        "prompts": _in_words(config.prompts),
        "classes": str(len(run.classes)),
        "photos": f"{labeled} labeled, {len(samples) - labeled} without a label",
        "seed": str(config.seed),
        "page made by": ", ".join(
            [f"semples {software_version()}", f"Python {platform.python_version()}"]
            + [f"{name} {version(name)}" for name in _PACKAGES]
        ),
    }


def _in_words(section: BaseModel) -> str:
    """A section of the configuration, what is null left out."""
    values = section.model_dump(mode="json", exclude_none=True)
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())


def _prompts(samples: Sequence[Sample], info: BundleInfo) -> tuple[PromptRow, ...]:
    photos = Counter(channel for sample in samples for channel in sample.channels)
    return tuple(
        PromptRow(name, photos[info.classes.channel(name)], nouns)
        for name, nouns in info.nearest_nouns.items()
    )
