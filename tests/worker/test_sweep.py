"""Expired blobs are deleted by one janitor for all."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.helpers.service_fixtures import Place
from worker.janitor import EXPIRY_KEY, expire_blobs
from worker.queue.schema import BLOB_SECONDS


def put_long_ago(place: Place) -> Path:
    key = place.blobs.put("uploads", b"old")
    path: Path = place.data / "blobs" / key
    then = path.stat().st_mtime - BLOB_SECONDS - 60
    os.utime(path, (then, then))
    return path


def sweep(place: Place) -> None:
    lifetime = timedelta(seconds=BLOB_SECONDS)
    expire_blobs(place.blobs, place.redis, now=datetime.now(UTC), lifetime=lifetime, interval=600)


def test_of_many_janitors_one_sweeps_at_a_time(place: Place) -> None:
    assert not place.redis.exists(EXPIRY_KEY)
    path = put_long_ago(place)
    sweep(place)
    assert not path.exists()

    put_long_ago(place)
    sweep(place)
    assert path.exists()

    # The turn ends before the same janitor's next one, should it be the only one.
    assert 0 < place.redis.ttl(EXPIRY_KEY) < 600
    place.redis.delete(EXPIRY_KEY)
    sweep(place)
    assert not path.exists()
