"""What an exception in a job means: for the person who posted it, and for RQ's retries."""

from __future__ import annotations

import logging
from types import TracebackType

from redis.exceptions import RedisError
from rq.exceptions import AbandonedJobError
from rq.job import Job
from rq.timeouts import JobTimeoutException
from rq.utils import now

from models.data.classes import UnknownLabelError
from models.data.images import ImageError
from worker.blobs import BlobError, BlobMissingError, BlobStoreFullError
from worker.dead_letters import bury
from worker.protocol import MAX_ATTEMPTS, FailureCode, JobFailure
from worker.queues import TaskNotAllowedError

log = logging.getLogger(__name__)

_DEATHS = "deaths"
"""Key of a job's meta: how many workers died with it in their hands."""


class CannotSegmentError(Exception):
    """A job wants a segmenter that this worker's model does not have."""


# type → code, sentence (None: the exception's own words, which are meant for users), repeatable.
_KNOWN: tuple[tuple[type[BaseException], FailureCode, str | None, bool], ...] = (
    (ImageError, "image_unreadable", None, False),
    (UnknownLabelError, "unknown_label", None, True),
    (CannotSegmentError, "cannot_segment", None, True),
    (BlobMissingError, "input_missing", "the uploaded image is no longer stored", True),
    (BlobStoreFullError, "storage_full", "there is no room to store the result", True),
    (BlobError, "storage_unavailable", "the blob store cannot be read or written", True),
    (RedisError, "storage_unavailable", "the queue cannot be reached", True),
    (JobTimeoutException, "timeout", "the job took longer than it may", True),
    (
        AbandonedJobError,
        "worker_died",
        f"the worker died on this job {MAX_ATTEMPTS} times",
        False,
    ),
    (MemoryError, "out_of_memory", "the image does not fit into memory with this model", True),
    (TaskNotAllowedError, "task_not_allowed", None, False),
)


def describe(error: BaseException) -> JobFailure:
    """Return what to tell the person who posted the job; internals stay in the worker's log."""
    for kind, code, sentence, repeatable in _KNOWN:
        if isinstance(error, kind):
            return JobFailure(code=code, detail=sentence or str(error), repeatable=repeatable)
    # torch is not imported here: its error is known by name.
    if type(error).__name__ == "OutOfMemoryError":
        return describe(MemoryError())
    name = type(error).__name__
    return JobFailure(
        code="model_error", detail=f"the model failed on this image ({name})", repeatable=True
    )


def may_pass(error: BaseException) -> bool:
    """Return whether another attempt may go well; anything else would fail alike, or do harm."""
    lasting = isinstance(error, BlobMissingError | BlobStoreFullError)
    return isinstance(error, RedisError | BlobError) and not lasting


def has_cost_a_worker(job: Job) -> bool:
    """Return whether a worker died with a job in its hands.

    Such a job is worked on alone: if it is what killed the worker, no other goes down with it again.
    """
    return bool(job.meta.get(_DEATHS))


def note_failure(
    job: Job,
    kind: type[BaseException],
    error: BaseException,
    traceback: TracebackType | None,
) -> None:
    """Write why a job failed into its meta, and spare it retries that cannot help.

    RQ calls this for an exception in a job, and with AbandonedJobError for a job whose worker died.
    """
    del kind, traceback
    died = isinstance(error, AbandonedJobError)
    retries_left = job.retries_left or 0
    if died and retries_left > 0:
        log.warning("its worker died; %d attempts left", retries_left, extra={"job": job.id})
        job.meta[_DEATHS] = job.meta.get(_DEATHS, 0) + 1
        job.save_meta()  # type: ignore[no-untyped-call]
        return
    if died:
        bury(job, now=now())
    elif not may_pass(error):
        job.retries_left = 0
    job.meta.pop("progress", None)
    job.meta["failure"] = describe(error).model_dump()
    job.save_meta()  # type: ignore[no-untyped-call]
