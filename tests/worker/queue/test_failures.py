"""What an exception means to the one who posted the job, and whether the job is tried again."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from rq.exceptions import AbandonedJobError
from rq.timeouts import JobTimeoutException

from models.data.classes import UnknownLabelError
from models.data.images import ImageError
from models.inference.masks import CannotSegmentError
from tests.helpers.service_fixtures import Place
from worker.queue.failures import dead_letters, describe, note_failure
from worker.queue.rq import TaskNotAllowedError
from worker.storage import BlobError, BlobMissingError, BlobStoreFullError


class OutOfMemoryError(RuntimeError):
    """As torch's is called."""


class JobDouble:
    """As much of a job as a failure touches."""

    id = "0"

    def __init__(self, retries_left: int) -> None:
        self.retries_left = retries_left
        self.meta: dict[str, Any] = {"progress": {"stage": "cam", "fraction": 0.5}}
        self.saved: dict[str, Any] | None = None

    def save_meta(self) -> None:
        self.saved = dict(self.meta)


# error → code, part of the detail, whether posting again helps, retries left of 2
TABLE: list[tuple[Exception, str, str, bool, int]] = [
    (ImageError("unreadable", "cannot read the image: x"), "image_unreadable", "x", False, 0),
    (UnknownLabelError("cta", ("cat",)), "unknown_label", "nearest known: cat", True, 0),
    (CannotSegmentError("no segmenter"), "cannot_segment", "no segmenter", True, 0),
    (BlobMissingError("k"), "input_missing", "no longer stored", True, 0),
    (BlobStoreFullError("k"), "storage_full", "no room", True, 0),
    (BlobError("k"), "storage_unavailable", "blob store", True, 2),
    (RedisConnectionError("gone"), "storage_unavailable", "queue", True, 2),
    (JobTimeoutException("t"), "timeout", "longer", True, 0),
    (MemoryError(), "out_of_memory", "memory", True, 0),
    (OutOfMemoryError("CUDA"), "out_of_memory", "memory", True, 0),
    (TaskNotAllowedError("no"), "task_not_allowed", "no", False, 0),
    (RuntimeError("secret"), "model_error", "(RuntimeError)", True, 0),
]


@pytest.mark.parametrize(
    ("error", "code", "detail", "repeatable", "retries"), TABLE, ids=lambda value: str(value)[:20]
)
def test_table(error: Exception, code: str, detail: str, repeatable: bool, retries: int) -> None:
    failure = describe(error)
    assert (failure.code, failure.repeatable) == (code, repeatable)
    assert detail in failure.detail
    assert "secret" not in failure.detail
    job = JobDouble(2)
    note_failure(job, type(error), error, None)  # type: ignore[arg-type]
    assert job.retries_left == retries
    assert job.saved == {"failure": failure.model_dump()}


def test_a_dead_workers_job_is_tried_again_while_it_may_be() -> None:
    job = JobDouble(1)
    note_failure(job, AbandonedJobError, AbandonedJobError(), None)  # type: ignore[arg-type]
    assert job.retries_left == 1
    assert job.saved is not None
    assert job.saved["deaths"] == 1  # from now on it is worked on alone


def test_a_job_that_has_killed_its_last_worker_is_failed_for_good(place: Place) -> None:
    job = place.post("cat")
    job.retries_left = 0
    note_failure(job, AbandonedJobError, AbandonedJobError(), None)
    failure = {
        "code": "worker_died",
        "detail": "the worker died on this job 3 times",
        "repeatable": False,
    }
    assert job.get_meta() == {"failure": failure}
    [letter] = dead_letters(place.redis)
    assert (letter.job, letter.reason) == (job.id, failure["detail"])
