"""Events of a job in order: a bounded Redis stream for each, which clients listen to.

The end is not in it: that is the job's own status, which is written in the transaction that ends the job.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal

from redis.client import Pipeline

from worker.queue.schema import RESULT_SECONDS

EventName = Literal["status", "progress"]

MAX_EVENTS: Final = 256
"""Of one job; the oldest go first. A job has about a dozen for each attempt."""


def events_key(job_id: str) -> str:
    """Return the key of a job's stream."""
    return f"semples:events:{job_id}"


def add_event(pipeline: Pipeline, job_id: str, name: EventName, data: Mapping[str, Any]) -> None:
    """Add an event of JSON types to a job's stream, which lives as long as a result does."""
    key = events_key(job_id)
    pipeline.xadd(key, {"event": name, "data": json.dumps(data)}, maxlen=MAX_EVENTS)
    pipeline.expire(key, RESULT_SECONDS)
