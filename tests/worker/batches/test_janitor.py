"""Janitors that are killed in the middle of a batch, or two at once: nothing is lost, and nothing is done twice."""

import os
import signal
from collections.abc import Iterator

import httpx
import pytest

from service.local.supervisor import Child
from tests.helpers.batches import accepted, ended, items, many, packed, runs
from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, http_api, janitor_process, wait_for

PHOTOS = 80

pytestmark = pytest.mark.slow  # kills


@pytest.fixture
def api(place: Place, worker: WorkerProcess) -> Iterator[httpx.Client]:
    """With so few items in flight that a batch takes many rounds."""
    with http_api(place, max_queue=30) as client:
        yield client
    wait_for(lambda: place.leftovers() == NOTHING, what="an empty queue")


def left(api: httpx.Client, path: str) -> int:
    """Photos that are not done."""
    counts = api.get(path).json()["counts"]
    return int(counts["total"] - counts["finished"])


def kill(child: Child) -> None:
    os.kill(child.pid, signal.SIGKILL)
    wait_for(lambda: child.exit_code is not None)


def each_is_done_once(api: httpx.Client, place: Place, path: str) -> None:
    document = ended(api, path)
    assert (document["status"], document["counts"]["finished"]) == ("finished", PHOTOS)
    found = items(api, path)
    assert [each["number"] for each in found] == list(range(1, PHOTOS + 1))
    assert len({each["job"] for each in found}) == PHOTOS
    assert {runs(place, each["job"]) for each in found} == {1}


def test_killed_again_and_again(api: httpx.Client, place: Place) -> None:
    path = accepted(api, packed(many(PHOTOS)))
    for _ in range(2):
        before = left(api, path)
        with janitor_process(place) as child:
            wait_for(lambda before=before: left(api, path) < before, what="a step")  # type: ignore[misc]
            kill(child)
    assert left(api, path) > 0
    with janitor_process(place):
        each_is_done_once(api, place, path)


def test_two_at_once(api: httpx.Client, place: Place) -> None:
    path = accepted(api, packed(many(PHOTOS)))
    with janitor_process(place), janitor_process(place) as second:
        wait_for(lambda: left(api, path) < PHOTOS, what="a step")
        kill(second)
        each_is_done_once(api, place, path)
