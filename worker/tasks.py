"""Tasks that a job may name; RQ calls them by their import path, with JSON alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rq import get_current_job

from worker.protocol import JobRequest
from worker.runtime import installed
from worker.steps import run


def pseudo_mask(request: Mapping[str, Any]) -> dict[str, Any]:
    """Segment the classes that a queued request names.

    Args:
        request: a JobRequest in JSON's types.

    Returns:
        A JobResult in JSON's types.
    """
    return _work(request)


def segment_image(request: Mapping[str, Any]) -> dict[str, Any]:
    """Segment whatever a queued request's image shows; as ``pseudo_mask``."""
    return _work(request)


def _work(request: Mapping[str, Any]) -> dict[str, Any]:
    """Do all of it in a plain RQ worker; our loop comes here only to have RQ write down why a job failed."""
    runtime, job = installed(), get_current_job()
    error = runtime.failures.get(job.id) if job is not None else None
    if error is not None:
        raise error
    parsed = JobRequest.model_validate(request)
    return run(parsed, runtime, waited=0.0, report=_ignore).model_dump(mode="json")


def _ignore(stage: str, fraction: float) -> None:
    del stage, fraction
