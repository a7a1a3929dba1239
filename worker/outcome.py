"""What became of a job, in the API's words. Wire layer."""

from __future__ import annotations

from typing import Final, Literal

from rq.job import Job, JobStatus

from worker.protocol import JobFailure, JobRequest

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


def failure_of(job: Job) -> JobFailure:
    """Return why a job failed."""
    noted = job.meta.get("failure")
    if noted is not None:
        return JobFailure.model_validate(noted)
    # Nobody was there to note it: its worker died before it had the job in its hands.
    return JobFailure(code="worker_died", detail="the job's workers died", repeatable=True)
