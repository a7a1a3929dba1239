"""What the API says of batches, as documented in /docs."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from worker.batches.records import BatchItem, ItemOutcome, ItemStatus
from worker.batches.store import Standing
from worker.queue.schema import FailureCode, JobFailure, ModelRef

BatchStatus = Literal["queued", "running", "finished", "canceled"]

_BATCH_PATH: Final = "/batches/8c1f0e5d7b6a49388f1e2d3c4b5a6978"
BATCH: Final[dict[str, Any]] = {
    "id": "8c1f0e5d7b6a49388f1e2d3c4b5a6978",
    "status": "running",
    "counts": {
        "total": 100000,
        "waiting": 61200,
        "queued": 600,
        "running": 16,
        "finished": 38180,
        "failed": 4,
        "canceled": 0,
    },
    "model": {"name": "coco-demo", "version": "0123456789ab"},
    "created_at": "2026-11-25T08:30:00.120000Z",
    "ended_at": None,
    "links": {
        "self": _BATCH_PATH,
        "events": f"{_BATCH_PATH}/events",
        "items": f"{_BATCH_PATH}/items",
        "report": f"{_BATCH_PATH}/report",
        "archive": f"{_BATCH_PATH}/archive.zip",
    },
}


class Counts(BaseModel):
    """How many photos there are, and how many are in which state; ``waiting`` is not yet handed to the queue."""

    total: int
    waiting: int
    queued: int
    running: int
    finished: int
    failed: int
    canceled: int


class BatchLinks(BaseModel):
    """Paths of a batch; the archive is there once it has ended."""

    self: str
    events: str
    items: str
    report: str
    archive: str


class BatchDocument(BaseModel):
    """A batch: where it stands."""

    model_config = ConfigDict(json_schema_extra={"examples": [BATCH]})

    id: str
    status: BatchStatus
    counts: Counts
    model: ModelRef
    created_at: datetime
    ended_at: datetime | None
    links: BatchLinks


class ItemProblem(BaseModel):
    """Why a photo has no mask."""

    title: str
    detail: str
    code: FailureCode


class ItemDocument(BaseModel):
    """A photo of a batch; ``image`` is its path in the zip."""

    number: int
    image: str
    labels: tuple[str, ...]
    status: ItemStatus
    job: str | None
    problem: ItemProblem | None


class ItemList(BaseModel):
    """A page of photos; ``next`` is what the next page is asked for ``after``, null after the last one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "number": 17,
                            "image": "street/tram.png",
                            "labels": ["car"],
                            "status": "failed",
                            "job": None,
                            "problem": {
                                "title": "Image unreadable",
                                "detail": "cannot read the image: image file is truncated",
                                "code": "image_unreadable",
                            },
                        }
                    ],
                    "next": None,
                }
            ]
        }
    )

    items: tuple[ItemDocument, ...]
    next: int | None


def batch_document(
    standing: Standing, counts: dict[ItemStatus, int], *, path: str
) -> BatchDocument:
    """Describe a batch.

    Args:
        standing: the batch.
        counts: of its items by state.
        path: the batch's own.
    """
    record = standing.record
    # Items may have failed before any was tried.
    begun = counts["running"] + counts["finished"] + counts["canceled"]
    parts = {each: f"{path}/{each}" for each in ("events", "items", "report")}
    return BatchDocument(
        id=record.id,
        status=standing.end or ("running" if begun else "queued"),
        counts=Counts(total=record.total, **counts),
        model=record.request.model,
        created_at=record.created_at,
        ended_at=standing.ended_at,
        links=BatchLinks(self=path, archive=f"{path}/archive.zip", **parts),
    )


def item_document(
    number: int, item: BatchItem, status: ItemStatus, outcome: ItemOutcome
) -> ItemDocument:
    """Describe a photo."""
    return ItemDocument(
        number=number,
        image=item.image,
        labels=item.labels,
        status=status,
        job=outcome.job,
        problem=problem_of(outcome.failure),
    )


def problem_of(failure: JobFailure | None) -> ItemProblem | None:
    """Return a failure as a problem."""
    if failure is None:
        return None
    title = failure.code.replace("_", " ").capitalize()
    return ItemProblem(title=title, detail=failure.detail, code=failure.code)
