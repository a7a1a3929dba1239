"""What a folder of pseudo masks comes to, class by class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_FIELDS = ("area", "confidence", "alignment_class", "alignment_background")


def summarize(
    records: Iterable[Mapping[str, Any]],
    *,
    images: int,
    unlabeled: int,
    failed: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """Return the summary of a folder in JSON's types; no more than one record is held at a time.

    Args:
        records: of the masks, one a photo.
        images: photos in all.
        unlabeled: those of them without a label.
        failed: (image, reason) of those that no mask could be made of.
    """
    masks = 0
    by_class: dict[str, _ClassTotals] = {}
    for record in records:
        masks += 1
        for each in record["classes"]:
            by_class.setdefault(each["name"], _ClassTotals()).add(each, record["image"])
    return {
        "images": images,
        "masks": masks,
        "unlabeled": unlabeled,
        "failed": [{"image": name, "reason": reason} for name, reason in failed],
        "classes": {name: by_class[name].to_json() for name in sorted(by_class)},
    }


@dataclass
class _ClassTotals:
    images: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)

    def add(self, found: Mapping[str, Any], image: str) -> None:
        """Count one photo's result; what it cannot tell is no part of a mean."""
        self.images += 1
        for name in _FIELDS:
            if found[name] is not None:
                self.sums[name] = self.sums.get(name, 0.0) + found[name]
                self.counts[name] = self.counts.get(name, 0) + 1
        if found["box"] is None:
            self.empty.append(image)

    def to_json(self) -> dict[str, Any]:
        means = {
            f"mean_{name}": self.sums[name] / self.counts[name] if name in self.counts else None
            for name in _FIELDS
        }
        return {"images": self.images, **means, "empty": self.empty}
