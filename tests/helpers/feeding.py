"""What tests of the feeder share: a model that is announced and no worker, the feeder, and what it leaves to others."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from rq.job import JobStatus
from rq.results import Result

from tests.helpers.service_doubles import Info
from tests.helpers.service_fixtures import Place
from worker.batches.scheduler import Feeder
from worker.janitor import EXPIRY_KEY, expire_blobs
from worker.queue.registry import ModelInfo, WorkerInfo, announce
from worker.queue.rq import fetch_job
from worker.queue.schema import BLOB_SECONDS


@pytest.fixture
def announced(place: Place) -> None:
    """Nothing in Redis nor in the store but a model."""
    place.redis.flushdb()
    for path in (place.data / "blobs").rglob("*/*/*"):
        path.unlink()
    model = ModelInfo.model_validate(Info().to_json())
    info = WorkerInfo(name="w", model=model.ref, device="cpu", host="h", pid=1)
    announce(place.redis, info, model, lease=60)


@pytest.fixture
def feeder(place: Place) -> Feeder:
    return Feeder(place.redis, place.blobs)


def counts(api: httpx.Client, path: str) -> dict[str, int]:
    return dict(api.get(path).json()["counts"])


def batch_of(path: str) -> str:
    return path.rpartition("/")[2]


def sweep(place: Place) -> None:
    place.redis.delete(EXPIRY_KEY)
    life = timedelta(seconds=BLOB_SECONDS)
    expire_blobs(place.blobs, place.redis, now=datetime.now(UTC), lifetime=life, interval=600)


def make_old(place: Place) -> None:
    then = time.time() - BLOB_SECONDS - 60
    for path in (place.data / "blobs").rglob("*"):
        os.utime(path, (then, then))


def finish(place: Place, job_id: str, *, mask: bytes = b"mask") -> str:
    """Do a worker's work on a job; the mask's key."""
    job = fetch_job(place.redis, job_id)
    assert job is not None
    request = job.args[0]
    key = place.blobs.put("results", mask)
    result = {
        "model": request["model"],
        "image": {"width": 3, "height": 2, "exif_orientation": 1},
        "labels": request["labels"],
        "options": request["options"],
        "classes": [{"index": 1, "name": "cat", "area": 0.5, "confidence": 0.9}],
        "ignored": 0.0,
        "timings": {"queue": 0, "decode": 0, "model": 0, "encode": 0},
        "blobs": {"mask": key, "scores": key},
        "worker": "w",
    }
    place.queue.remove(job_id)
    with place.redis.pipeline() as pipeline:
        job.set_status(JobStatus.FINISHED, pipeline=pipeline)
        pipeline.execute()
    Result.create(job, Result.Type.SUCCESSFUL, ttl=3600, return_value=result)
    return key
