"""Report of a batch: coverage and confidence by class, and the photos that need a look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from service.api.schemas import ItemProblem, problem_of
from worker.batches.records import ItemResult
from worker.batches.store import Row

_EXAMPLE: Final[dict[str, Any]] = {
    "photos": 38180,
    "coverage": 0.31,
    "ignored": 0.04,
    "classes": [{"index": 1, "name": "cat", "photos": 20100, "area": 0.21, "confidence": 0.83, "empty": 37}],
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


_Entry = TypeVar("_Entry", bound=BaseModel)


class _Entries(BaseModel, Generic[_Entry]):
    """How many there are, and the first of them."""

    total: int = 0
    first: list[_Entry] = []

    def add(self, entry: _Entry, *, limit: int) -> None:
        """Count an entry, and list it unless the list is full."""
        self.total += 1
        if len(self.first) < limit:
            self.first.append(entry)


# Subclasses, for a generic's own name is unreadable in the OpenAPI document.


class EmptyLabels(_Entries[EmptyLabel]):
    """Labels without a pixel."""


class UnsurePhotos(_Entries[UnsurePhoto]):
    """Photos of low confidence."""


class FailedPhotos(_Entries[FailedPhoto]):
    """Photos without a mask."""


class BatchReport(BaseModel):
    """What came out of the finished photos of a batch so far.

    ``coverage`` is the foreground's mean share of a photo's pixels, ``ignored`` that of ignored ones; both null without
    a finished photo.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    photos: int
    coverage: float | None
    ignored: float | None
    classes: list[ClassReport]
    empty: EmptyLabels
    low_confidence: UnsurePhotos
    failed: FailedPhotos


def make_report(
    finished: Iterable[Row],
    failed: Iterable[Row],
    classes: Mapping[int, str],
    *,
    low_confidence: float,
    limit: int,
) -> BatchReport:
    """Summarize the items of a batch.

    Args:
        finished: items with a result.
        failed: items without one, failed or canceled.
        classes: names by index.
        low_confidence: photos whose confidence is lower are listed.
        limit: length of each list.
    """
    sums: dict[int, _ClassSum] = {}
    empty, unsure = EmptyLabels(), UnsurePhotos()
    photos, covered, ignored = 0, 0.0, 0.0
    for number, item, outcome in finished:
        result = outcome.result
        if result is None:
            continue
        photos += 1
        covered += sum(each.area for each in result.classes)
        ignored += result.ignored
        for each in result.classes:
            sums.setdefault(each.index, _ClassSum()).add(each.area, each.confidence)
            if not each.area:
                label = classes[each.index]
                empty.add(EmptyLabel(number=number, image=item.image, label=label), limit=limit)
        confidence = _foreground_confidence(result)
        if confidence is not None and confidence < low_confidence:
            photo = UnsurePhoto(number=number, image=item.image, confidence=round(confidence, 6))
            unsure.add(photo, limit=limit)
    without_mask = FailedPhotos()
    for number, item, outcome in failed:
        problem = problem_of(outcome.failure)
        entry = FailedPhoto(number=number, image=item.image, problem=problem)
        without_mask.add(entry, limit=limit)
    return BatchReport(
        photos=photos,
        coverage=round(covered / photos, 6) if photos else None,
        ignored=round(ignored / photos, 6) if photos else None,
        classes=[sums[index].report(index, classes[index]) for index in sorted(sums)],
        empty=empty,
        low_confidence=unsure,
        failed=without_mask,
    )


@dataclass
class _ClassSum:
    photos: int = 0
    area: float = 0.0
    confidence: float = 0.0
    empty: int = 0

    def add(self, area: float, confidence: float | None) -> None:
        self.photos += 1
        self.area += area
        self.confidence += confidence or 0.0
        self.empty += not area

    def report(self, index: int, name: str) -> ClassReport:
        with_pixels = self.photos - self.empty
        return ClassReport(
            index=index,
            name=name,
            photos=self.photos,
            area=round(self.area / self.photos, 6),
            confidence=round(self.confidence / with_pixels, 6) if with_pixels else None,
            empty=self.empty,
        )


def _foreground_confidence(result: ItemResult) -> float | None:
    """Return the mean confidence of a photo's foreground, None if it has none."""
    area = sum(each.area for each in result.classes)
    if not area:
        return None
    return sum(each.area * (each.confidence or 0.0) for each in result.classes) / area
