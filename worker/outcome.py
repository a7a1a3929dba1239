"""What became of a job, in the API's words. Wire layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from redis import Redis
from rq.job import Job, JobStatus
from rq.results import Result
from rq.serializers import JSONSerializer

from worker.protocol import JobFailure, JobRequest, JobResult

Status = Literal["queued", "running", "finished", "failed", "canceled"]

TERMINAL: Final[frozenset[Status]] = frozenset({"finished", "failed", "canceled"})
"""What a job ends with, unless the same is posted again."""

_STATUS: Final[dict[JobStatus, Status]] = {
    JobStatus.STARTED: "running",
    JobStatus.FINISHED: "finished",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELED: "canceled",
    JobStatus.STOPPED: "canceled",
}


def status_of(job: Job) -> Status:
    """Return a job's status in the API's words."""
    return status_word(job.get_status(refresh=False))


def status_word(status: JobStatus) -> Status:
    """Return RQ's status in the API's words."""
    return _STATUS.get(status, "queued")


def request_of(job: Job) -> JobRequest:
    """Return what a job was asked to do."""
    return JobRequest.model_validate(job.args[0])


def result_of(job: Job) -> JobResult | None:
    """Return what came out of a job, or None if it is not finished, or its result has expired."""
    if status_of(job) != "finished":
        return None
    value = job.return_value()
    return JobResult.model_validate(value) if value is not None else None


def results_of(redis: Redis, job_ids: Sequence[str]) -> dict[str, JobResult]:
    """Return what came out of those of some jobs whose result there is, in one round trip."""
    with redis.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.xrevrange(Result.get_key(job_id), count=1)  # type: ignore[no-untyped-call]
        answers: list[list[tuple[bytes, Any]]] = pipeline.execute()
    found = {}
    for job_id, entries in zip(job_ids, answers, strict=True):
        for identity, payload in entries:
            stored = Result.restore(
                job_id, identity.decode(), payload, connection=redis, serializer=JSONSerializer
            )
            if stored.return_value is not None:
                found[job_id] = JobResult.model_validate(stored.return_value)
    return found


def failure_of(job: Job) -> JobFailure:
    """Return why a job failed."""
    noted = job.meta.get("failure")
    if noted is not None:
        return JobFailure.model_validate(noted)
    # Nobody was there to note it: its worker died before it had the job in its hands.
    return JobFailure(code="worker_died", detail="the job's workers died", repeatable=True)
