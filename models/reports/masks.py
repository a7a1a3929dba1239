"""What became of the pseudo masks, class by class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.data.mask_records import SUMMARY
from models.json_files import read_json
from models.refine.names import NO_REFINER

_MOST_NAMED = 5


@dataclass(frozen=True)
class ClassRow:
    """A class's masks over all photos that are labeled with it.

    Attributes:
        name: of the class.
        photos: how many.
        area: mean share of a photo, in [0, 1].
        confidence: mean over the masks that are not empty, in (0, 1]; None if all are.
        to_class: their mean cosine to the class text; None without CLIP.
        to_background: their mean cosine to the learned background prompt; likewise.
        empty: photos whose mask has no pixel.
    """

    name: str
    photos: int
    area: float | None
    confidence: float | None
    to_class: float | None
    to_background: float | None
    empty: tuple[str, ...]


@dataclass(frozen=True)
class MasksPart:
    """A whole folder of masks.

    Attributes:
        made: masks.
        unlabeled: photos without a label, which get none.
        failed: (photo, reason).
        options: how they were made, in words.
        rows: by class name.
    """

    made: int
    unlabeled: int
    failed: tuple[tuple[str, str], ...]
    options: str
    rows: tuple[ClassRow, ...]

    @property
    def empty(self) -> int:
        """How many masks of a class in a photo have no pixel."""
        return sum(len(row.empty) for row in self.rows)


def outcome_in_words(part: MasksPart) -> str:
    """Say how many labels have a mask without a pixel, and of which classes, the emptiest first; and what failed."""
    labels = sum(row.photos for row in part.rows)
    rows = sorted((row for row in part.rows if row.empty), key=lambda row: -len(row.empty))
    shares = [f"{row.name} {len(row.empty)} of {row.photos}" for row in rows[:_MOST_NAMED]]
    named = f" ({', '.join(shares)}{', …' if len(rows) > _MOST_NAMED else ''})" if rows else ""
    failed = f"; photos that failed: {len(part.failed)}" if part.failed else ""
    return f"{part.empty} empty of {labels} labels{named}{failed}"


def masks_part(folder: Path) -> MasksPart | None:
    """Describe the output of make-pseudo-masks; None while it is not whole.

    Raises:
        ValueError: if its summary is no JSON.
        OSError: if it cannot be read.
    """
    path = folder / SUMMARY
    if not path.is_file():
        return None
    summary = read_json(path)
    try:
        return MasksPart(
            made=summary["masks"],
            unlabeled=summary["unlabeled"],
            failed=tuple((each["image"], each["reason"]) for each in summary["failed"]),
            options=options_in_words(summary["options"]),
            rows=tuple(_row(name, found) for name, found in summary["classes"].items()),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected a summary of make-pseudo-masks in {path}, got {error}"
        ) from error


def options_in_words(options: Mapping[str, Any]) -> str:
    """Say how masks are made: refiner chain, background, least confidence."""
    power, own, least = (
        options[key] for key in ("background_power", "class_thresholds", "min_confidence")
    )
    words = [
        "not refined" if options["refine"] == NO_REFINER else f"refined by {options['refine']}",
        f"background threshold {options['background_threshold']}"
        if power is None
        else f"background power {power}",
        f"thresholds of their own for {len(own)} classes" if own else "",
        f"least confidence {least}" if least else "",
    ]
    return ", ".join(filter(None, words))


def _row(name: str, found: Mapping[str, Any]) -> ClassRow:
    return ClassRow(
        name=name,
        photos=found["images"],
        area=found["mean_area"],
        confidence=found["mean_confidence"],
        to_class=found["mean_alignment_class"],
        to_background=found["mean_alignment_background"],
        empty=tuple(found["empty"]),
    )
