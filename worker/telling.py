"""What is told of a job that has finished: counters, spans and a line in the log."""

from __future__ import annotations

import logging
import time

from rq.job import Job

from worker.meters import Meters
from worker.protocol import Timings
from worker.tracing import Stage, record_job

log = logging.getLogger(__name__)


def tell_finished(job: Job, times: Timings, meters: Meters) -> None:
    """Tell of a job that has just finished."""
    meters.ended("finished", decode=times.decode, encode=times.encode)
    record_job(job.meta, job.id, _stages(times))
    ids = {"job": job.id, "request": job.meta.get("request")}
    log.info("job finished", extra={**ids, "outcome": "finished"})


def _stages(timings: Timings) -> list[Stage]:
    """Say from when to when each part of a job took that has just ended, without the waits between."""
    encoding = time.perf_counter() - timings.encode
    modeling = encoding - timings.model
    return [
        Stage("decode", modeling - timings.decode, modeling),
        Stage("model", modeling, encoding),
        Stage("encode", encoding, encoding + timings.encode),
    ]
