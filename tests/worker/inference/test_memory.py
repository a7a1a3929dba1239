"""A worker that has seen many images of many sizes is no larger than one that has seen some."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from models.inference.masks import MaskOptions
from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, png, wait_for
from worker.queue.rq import make_job
from worker.queue.schema import JobRequest, ModelRef

HALF = 500
GROWTH = 24 * 2**20
"""Of the second half: 48 KB an image. The first half fills caches and finds the largest sizes."""


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(match[1]) * 1024 if match else 0


def run_many(place: Place, *, seed: int) -> None:
    """Queue half a thousand images, no two of which have the same size, and wait until all are done."""
    random = np.random.default_rng(seed)
    sides = random.integers(16, 400, (HALF, 2))
    finished = place.queue.finished_job_registry.count
    for number, (width, height) in enumerate(sides):
        # Every other one is segmented, and finds a class.
        labels = ("cat", "bowl")[: number % 3] if number % 2 else ()
        image = png(width=int(width), height=int(height), color=(number % 256, seed, 2))
        request = JobRequest(
            task="pseudo_mask" if labels else "segment",
            image=place.blobs.put("uploads", image),
            labels=labels,
            options=MaskOptions(refine="none", min_confidence=0.0, background_threshold=0.4),
            model=ModelRef(name="double", version="0123456789ab"),
        )
        place.queue.enqueue_job(make_job(place.redis, request, timeout=60), unique=True)
    wait_for(lambda: place.leftovers() == NOTHING, seconds=100, what=f"{HALF} jobs")
    assert place.queue.finished_job_registry.count == finished + HALF


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_stays_flat(place: Place, worker: WorkerProcess) -> None:
    pid = worker.ensure().pid
    run_many(place, seed=1)
    some = resident_bytes(pid)
    run_many(place, seed=2)
    many = resident_bytes(pid)
    assert 0 < many < some + GROWTH
