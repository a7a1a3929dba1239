"""A plain RQ ``SimpleWorker``, to compare ours with; ``benchmarks.serve`` runs it.

Its queue's name says what it is for: jobs that do nothing at all, or our own task with the predictor that ours has.
"""

from __future__ import annotations

import argparse

from redis import Redis
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer

from tests.helpers.service_doubles import load
from worker.inference.pipeline import Runtime, install
from worker.queue.registry import ModelInfo
from worker.settings import WorkerSettings
from worker.storage import BlobStore


def nothing() -> None:
    """Return at once: what is left is RQ's own work."""


def main() -> None:
    """Work until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--blobs", required=True)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--queue", required=True)
    arguments = parser.parse_args()
    settings = WorkerSettings(
        redis_url=arguments.redis_url, blobs=arguments.blobs, bundle=arguments.bundle
    )
    predictor = load(settings)
    model = ModelInfo.model_validate(predictor.info.to_json())
    install(Runtime(predictor, model, BlobStore.open(settings.blobs), settings.name))
    redis = Redis.from_url(arguments.redis_url)
    queue = Queue(arguments.queue, connection=redis, serializer=JSONSerializer)
    SimpleWorker([queue], connection=redis, serializer=JSONSerializer).work(logging_level="WARNING")


if __name__ == "__main__":
    main()
