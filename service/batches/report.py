"""What came out of a batch, as a data engineer wants to see it before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from service.api.schemas import ItemProblem, problem_of
from worker.batches.records import ItemResult
from worker.batches.store import Row

EXAMPLE: Final[dict[str, Any]] = {
    "photos": 38180,
    "coverage": 0.31,
    "ignored": 0.04,
    "classes": [
        {"index": 1, "name": "cat", "photos": 20100, "area": 0.21, "confidence": 0.83, "empty": 37}
    ],
    "empty": {
        "total": 37,
        "first": [{"number": 5, "image": "street/tram.png", "label": "cat"}],
    },
    "low_confidence": {
        "total": 110,
        "first": [{"number": 9, "image": "kitchen.jpg", "confidence": 0.41}],
    },
    "failed": {
        "total": 1,
        "first": [
            {
                "number": 17,
                "image": "broken.jpg",
                "problem": {
                    "title": "Image unreadable",
                    "detail": "cannot read the image: image file is truncated",
                    "code": "image_unreadable",
                },
            }
        ],
    },
}


class ClassReport(BaseModel):
    """One class over the photos that are labeled with it.

    ``area`` is its mean share of their pixels, ``confidence`` the mean over those where it has pixels, ``empty`` the
    number of those where it has none.
    """

    index: int
    name: str
    photos: int
    area: float
    confidence: float | None
    empty: int


class EmptyLabel(BaseModel):
    """A label of a photo whose mask has no pixel of it."""

    number: int
    image: str
    label: str


class UnsurePhoto(BaseModel):
    """A photo and the mean confidence of its foreground."""

    number: int
    image: str
    confidence: float


class FailedPhoto(BaseModel):
    """A photo without a mask: failed, or canceled, which is no problem."""

    number: int
    image: str
    problem: ItemProblem | None


class EmptyLabels(BaseModel):
    """How many there are, and the first of them."""

    total: int = 0
    first: list[EmptyLabel] = []


class UnsurePhotos(BaseModel):
    """How many there are, and the first of them."""

    total: int = 0
    first: list[UnsurePhoto] = []


class FailedPhotos(BaseModel):
    """How many there are, and the first of them."""

    total: int = 0
    first: list[FailedPhoto] = []


class BatchReport(BaseModel):
    """What came out of the finished photos of a batch so far.

    ``coverage`` is the foreground's mean share of a photo's pixels, ``ignored`` that of ignored ones; both null without
    a finished photo.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    photos: int
    coverage: float | None
    ignored: float | None
    classes: list[ClassReport]
    empty: EmptyLabels
    low_confidence: UnsurePhotos
    failed: FailedPhotos


@dataclass
class _Sum:
    photos: int = 0
    area: float = 0.0
    confidence: float = 0.0
    empty: int = 0

    def report(self, index: int, name: str) -> ClassReport:
        sure = self.photos - self.empty
        return ClassReport(
            index=index,
            name=name,
            photos=self.photos,
            area=round(self.area / self.photos, 6),
            confidence=round(self.confidence / sure, 6) if sure else None,
            empty=self.empty,
        )


def make_report(
    finished: Iterable[Row],
    failed: Iterable[Row],
    classes: Mapping[int, str],
    *,
    low_confidence: float,
    limit: int,
) -> BatchReport:
    """Add a batch's items up.

    Args:
        finished: items that have a result.
        failed: items that have none, and will have none unless the batch goes on.
        classes: names by index.
        low_confidence: photos that are less sure are listed.
        limit: most entries of each list.
    """
    sums: dict[int, _Sum] = {}
    empty, unsure, without = EmptyLabels(), UnsurePhotos(), FailedPhotos()
    photos, covered, ignored = 0, 0.0, 0.0
    for number, item, outcome in finished:
        if outcome.result is None:
            continue
        photos += 1
        covered += sum(each.area for each in outcome.result.classes)
        ignored += outcome.result.ignored
        for index in _add(sums, outcome.result):
            _list(empty, EmptyLabel(number=number, image=item.image, label=classes[index]), limit)
        confidence = photo_confidence(outcome.result)
        if confidence is not None and confidence < low_confidence:
            photo = UnsurePhoto(number=number, image=item.image, confidence=round(confidence, 6))
            _list(unsure, photo, limit)
    for number, item, outcome in failed:
        problem = problem_of(outcome.failure)
        _list(without, FailedPhoto(number=number, image=item.image, problem=problem), limit)
    return BatchReport(
        photos=photos,
        coverage=round(covered / photos, 6) if photos else None,
        ignored=round(ignored / photos, 6) if photos else None,
        classes=[sums[index].report(index, classes[index]) for index in sorted(sums)],
        empty=empty,
        low_confidence=unsure,
        failed=without,
    )


def photo_confidence(result: ItemResult) -> float | None:
    """Return the mean confidence of a photo's foreground, None if it has none."""
    area = sum(each.area for each in result.classes)
    if not area:
        return None
    return sum(each.area * (each.confidence or 0.0) for each in result.classes) / area


def _add(sums: dict[int, _Sum], result: ItemResult) -> list[int]:
    """Add a photo's classes; return those that have no pixel."""
    empty = []
    for each in result.classes:
        total = sums.setdefault(each.index, _Sum())
        total.photos += 1
        total.area += each.area
        total.confidence += each.confidence or 0.0
        if not each.area:
            total.empty += 1
            empty.append(each.index)
    return empty


def _list(place: EmptyLabels | UnsurePhotos | FailedPhotos, entry: Any, limit: int) -> None:
    place.total += 1
    if len(place.first) < limit:
        place.first.append(entry)
