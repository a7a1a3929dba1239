"""A plain RQ ``SimpleWorker``, to compare ours with; ``benchmarks.serve`` runs it.

Its queue's name says what it is for: jobs that do nothing at all, or our own steps with the predictor that ours has.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from redis import Redis
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer

from tests.helpers.service_doubles import load
from tests.helpers.undisturbed import run_steps
from worker.inference.pipeline import WorkerContext
from worker.queue.registry import ModelInfo
from worker.queue.schema import JobRequest
from worker.settings import WorkerSettings
from worker.storage import BlobStore

_context: list[WorkerContext] = []


def nothing() -> None:
    """Return at once: what is left is RQ's own work."""


def same(request: dict[str, Any]) -> dict[str, Any]:
    """Do what our worker does for a job."""
    # By its import path: RQ imports this module again, beside the one that runs as a program.
    context = sys.modules["__main__"]._context[0]
    return run_steps(JobRequest.model_validate(request), context).model_dump(mode="json")


def main() -> None:
    """Work until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--blobs", required=True)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--queue", required=True)
    arguments = parser.parse_args()
    settings = WorkerSettings(redis_url=arguments.redis_url, blobs=arguments.blobs, bundle=arguments.bundle)
    predictor = load(settings)
    model = ModelInfo.model_validate(predictor.info.to_json())
    blobs = BlobStore.open(settings.blobs)
    _context.append(WorkerContext(predictor, model, blobs, settings.name))
    redis = Redis.from_url(arguments.redis_url)
    queue = Queue(arguments.queue, connection=redis, serializer=JSONSerializer)
    SimpleWorker([queue], connection=redis, serializer=JSONSerializer).work(logging_level="WARNING")


if __name__ == "__main__":
    main()
