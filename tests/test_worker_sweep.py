"""Expired blobs are deleted by one worker for all."""

from __future__ import annotations

import os
from pathlib import Path

from tests.service_fixtures import Place
from worker.protocol import BLOB_SECONDS
from worker.run import SWEEP_KEY, SWEEP_SECONDS, sweep_for_all


def put_long_ago(place: Place) -> Path:
    key = place.blobs.put("uploads", b"old")
    path: Path = place.data / "blobs" / key
    then = path.stat().st_mtime - BLOB_SECONDS - 60
    os.utime(path, (then, then))
    return path


def test_of_many_workers_one_sweeps_at_a_time(place: Place) -> None:
    assert not place.redis.exists(SWEEP_KEY)
    path = put_long_ago(place)
    sweep_for_all(place.blobs, place.redis)
    assert not path.exists()

    put_long_ago(place)
    sweep_for_all(place.blobs, place.redis)
    assert path.exists()

    # The turn ends before the same worker's next one, should it be the only one.
    assert 0 < place.redis.ttl(SWEEP_KEY) < SWEEP_SECONDS
    place.redis.delete(SWEEP_KEY)
    sweep_for_all(place.blobs, place.redis)
    assert not path.exists()
