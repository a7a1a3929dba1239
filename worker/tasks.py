"""Tasks that a job may name; RQ calls them by their import path, with JSON alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rq import get_current_job

from worker.protocol import JobRequest, Timings
from worker.runtime import installed
from worker.steps import run
from worker.tracing import Stage, record_job


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
    """Hand out what our loop has made already; a plain RQ worker makes it now."""
    runtime, job = installed(), get_current_job()
    concluded = runtime.concluded.pop(job.id, None) if job is not None else None
    if job is not None and concluded is not None:
        result = concluded.result()
        times = result.timings
        runtime.meters.ended("finished", decode=times.decode, encode=times.encode)
        record_job(job.meta, job.id, _stages(times))
        return result.model_dump(mode="json")
    parsed = JobRequest.model_validate(request)
    return run(parsed, runtime, waited=0.0, report=_ignore).model_dump(mode="json")


def _stages(timings: Timings) -> list[Stage]:
    """Say from when to when each part of a job took that has just ended, without the waits between."""
    encoding = time.perf_counter() - timings.encode
    modeling = encoding - timings.model
    return [
        Stage("decode", modeling - timings.decode, modeling),
        Stage("model", modeling, encoding),
        Stage("encode", encoding, encoding + timings.encode),
    ]


def _ignore(stage: str, fraction: float) -> None:
    del stage, fraction
