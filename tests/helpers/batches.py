"""Zips of photos for tests of batches, the API's answers on them, and the scheduler without a worker."""

import io
import os
import time
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from rq.job import JobStatus
from rq.results import Result

from service.local.supervisor import Child
from tests.helpers.posting import new_photo, wait_for_status
from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, janitor_process, wait_for
from worker.batches.scheduler import BatchScheduler
from worker.janitor import EXPIRY_KEY, _expire_blobs
from worker.queue.rq import fetch_job
from worker.queue.schema import BLOB_SECONDS


def packed(files: Mapping[str, bytes | str], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip, the same for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def rows(labels: Mapping[str, str]) -> str:
    """A labels.csv."""
    return "image,labels\n" + "".join(f"{image},{said}\n" for image, said in labels.items())


def many(number: int, label: str = "cat") -> dict[str, bytes | str]:
    """Photos 0.png, 1.png and so on, all labeled alike."""
    photos = {f"{n}.png": new_photo() for n in range(number)}
    return {"labels.csv": rows(dict.fromkeys(photos, label)), **photos}


def post(api: httpx.Client, archive: bytes, **options: Any) -> httpx.Response:
    return api.post("/batches", files={"archive": ("photos.zip", archive)}, data=options)


def accepted(api: httpx.Client, archive: bytes, **options: Any) -> str:
    """Post a valid zip; its batch's path."""
    answer = post(api, archive, **options)
    assert answer.status_code == 202, answer.text
    location = answer.headers["Location"]
    assert location == answer.json()["links"]["self"]
    return str(location)


def ended(api: httpx.Client, path: str) -> dict[str, Any]:
    """A batch once it has ended."""
    document = wait_for_status(api, path, "finished", "canceled", seconds=60)
    assert document["counts"]["total"] == sum(each for name, each in document["counts"].items() if name != "total")
    return document


def items(api: httpx.Client, path: str, **query: Any) -> list[dict[str, Any]]:
    """All of a batch's items, page by page."""
    found: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = api.get(f"{path}/items", params={"after": after, **query}).json()
        found += page["items"]
        after = page["next"]
    return found


def runs(place: Place, job_id: str) -> int:
    """How often a job has finished."""
    return int(place.redis.xlen(Result.get_key(job_id)))


@pytest.fixture(scope="module")
def running_janitor(place: Place) -> Iterator[Child]:
    with janitor_process(place) as child:
        yield child


@pytest.fixture
def nothing_left_behind(place: Place, worker: WorkerProcess, running_janitor: Child) -> Iterator[None]:
    yield
    wait_for(lambda: place.leftovers() == NOTHING, what="an empty queue")


@pytest.fixture
def announced(place: Place) -> None:
    """Redis and the blob store are empty but for a model."""
    place.redis.flushdb()
    for path in (place.data / "blobs").rglob("*/*/*"):
        path.unlink()
    place.announce(lease=60)


@pytest.fixture
def scheduler(place: Place) -> BatchScheduler:
    return BatchScheduler(place.redis, place.blobs)


def counts(api: httpx.Client, path: str) -> dict[str, int]:
    return dict(api.get(path).json()["counts"])


def batch_of(path: str) -> str:
    return path.rpartition("/")[2]


def expire(place: Place) -> None:
    place.redis.delete(EXPIRY_KEY)
    sweep(place)


def sweep(place: Place) -> None:
    life = timedelta(seconds=BLOB_SECONDS)
    _expire_blobs(place.blobs, place.redis, now=datetime.now(UTC), lifetime=life, interval=600)


def make_old(place: Place) -> None:
    then = time.time() - BLOB_SECONDS - 60
    for path in (place.data / "blobs").rglob("*"):
        os.utime(path, (then, then))


def finish(place: Place, job_id: str, *, mask: bytes = b"mask") -> str:
    """Finish a job as a worker does; the mask's key."""
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
    for queue in place.jobs.rq_queues:
        queue.remove(job_id)
    with place.redis.pipeline() as pipeline:
        job.set_status(JobStatus.FINISHED, pipeline=pipeline)
        pipeline.execute()
    Result.create(job, Result.Type.SUCCESSFUL, ttl=3600, return_value=result)
    return key
