"""What is to be made of a folder of photos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.data.classes import Sample
from models.data.labels import read_folder
from models.inference.masks import MaskOptions, pseudo_mask_options
from service.client.calls import PseudoMaskOptions
from service.client.documents import Model


@dataclass(frozen=True)
class Plan:
    """A folder of photos and what is to be made of it.

    Attributes:
        samples: the photos with their labels; those without a label are passed over.
        output: folder for the masks.
        model: that makes them.
        options: how.
        save_scores: also keep the scores.
    """

    samples: Sequence[Sample]
    output: Path
    model: Model
    options: MaskOptions
    save_scores: bool

    @property
    def settings(self) -> dict[str, Any]:
        """What must stay the same from one call to the next."""
        return {
            "model": {"name": self.model.name, "version": self.model.version},
            "options": vars(self.options),
            "scores": self.save_scores,
        }

    @property
    def labeled(self) -> Iterator[Sample]:
        """The photos that masks are made of."""
        return (sample for sample in self.samples if sample.channels)

    def labels(self, sample: Sample) -> list[str]:
        """Return the names of a photo's classes."""
        return [self.model.classes.names[channel] for channel in sample.channels]


def plan(
    places: tuple[Path, Path, Path],
    model: Model,
    *,
    save_scores: bool,
    options: PseudoMaskOptions,
) -> Plan:
    """Read what is to be done.

    Args:
        places: folder of photos, their labels as ``read_folder`` takes them, and folder for the masks.
        model: of the service.
        save_scores: also keep the scores.
        options: the model's name in them is passed over.

    Raises:
        ValueError: if the labels, the photos and the model do not fit together, or an option is out of range.
        OSError: if the labels cannot be read.
    """
    images, labels, output = places
    samples = read_folder(images, labels, model.classes)
    masks = (output / "masks").resolve()
    if any(sample.path.parent.resolve() == masks for sample in samples):
        raise ValueError(f"expected an output folder that keeps the images, got theirs: {output}")
    chosen = pseudo_mask_options(
        model.defaults,
        refine=options.get("refine"),
        background_threshold=options.get("background_threshold"),
        background_power=options.get("background_power"),
        min_confidence=options.get("min_confidence"),
    )
    return Plan(samples, output, model, chosen, save_scores)
