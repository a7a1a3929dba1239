"""Zips and jobs that batches share with each other and with single posts, and nothing lost between steps."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import httpx
import pytest

from service.batches.service import BatchService
from tests.helpers.batches import accepted, batch_of, counts, expire, finish, items, make_old, many, packed, post, rows
from tests.helpers.posting import new_photo
from tests.helpers.posting import post as post_image
from tests.helpers.service_fixtures import Place, http_api
from worker.batches.records import BatchRecord
from worker.batches.scheduler import BatchScheduler
from worker.batches.store import KNOWN_KEY, OPEN_KEY, BatchStore, batch_key
from worker.storage import BlobError, BlobStore

pytestmark = pytest.mark.usefixtures("announced")


@pytest.fixture(scope="module")
def api(place: Place) -> Iterator[httpx.Client]:
    with http_api(place, max_zips=8) as client:
        yield client


def test_a_canceled_batch_leaves_jobs_that_another_has_in_flight(
    api: httpx.Client, place: Place, scheduler: BatchScheduler
) -> None:
    files = many(2)
    one = accepted(api, packed(files))
    two = accepted(api, packed({**files, "readme.txt": "another zip"}))
    three = accepted(api, packed(many(1)))
    scheduler.dispatch()
    assert place.jobs.batch.count == 3
    api.delete(one)
    assert place.jobs.batch.count == 3
    api.delete(three)
    assert place.jobs.batch.count == 2
    assert counts(api, two)["queued"] == 2


def test_what_a_batch_needs_does_not_expire(api: httpx.Client, place: Place, scheduler: BatchScheduler) -> None:
    path = accepted(api, packed(many(2)))
    scheduler.dispatch()
    first = items(api, path)[0]["job"]
    mask = finish(place, first)
    scheduler.dispatch()
    archive = place.blobs.keys("archives")
    make_old(place)
    expire(place)
    assert place.blobs.keys("archives") == archive
    assert place.blobs.exists(mask)
    assert place.blobs.keys("uploads") == []  # a photo is in the zip

    # Nor does it go with its job, which a person deletes.
    api.delete(f"/jobs/{first}")
    assert place.blobs.exists(mask)

    # The batch expires; then all goes.
    place.redis.delete(*place.redis.keys(f"{batch_key(batch_of(path))}*"))
    make_old(place)
    expire(place)
    assert place.blobs.keys("archives") == place.blobs.keys("results") == []
    assert place.redis.zcard(KNOWN_KEY) == place.redis.zcard(OPEN_KEY) == 0


def test_two_batches_of_one_zip_keep_it_together(api: httpx.Client, place: Place) -> None:
    archive = packed(many(1))
    paths = [accepted(api, archive), accepted(api, archive, min_confidence="0.5")]
    for path in paths:
        assert len(place.blobs.keys("archives")) == 1
        api.delete(path)
        api.delete(path)
    assert place.blobs.keys("archives") == []
    assert not place.redis.exists(f"{batch_key(batch_of(paths[0]))}:blobs")


def test_posting_at_once_makes_one_batch(api: httpx.Client, place: Place) -> None:
    archive = packed(many(5))
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: accepted(api, archive), range(4)))
    assert len(paths) == 1
    assert counts(api, paths.pop())["total"] == 5
    keys = {key.decode() for key in place.redis.keys("semples:batch:*")}
    assert {each.count(":") for each in keys} <= {2, 3}  # nothing half made


def test_a_zip_that_is_deleted_while_it_is_posted_again(
    api: httpx.Client, place: Place, scheduler: BatchScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the steps of the second post the batch ends, and is removed with its zip."""
    archive = packed(many(1))
    path = accepted(api, archive)
    scheduler.dispatch()
    finish(place, items(api, path)[0]["job"])
    scheduler.dispatch()
    put_file = BlobStore.put_file
    calls = iter(["first", "second"])

    def meddled_with(blobs: BlobStore, key: str, file: BinaryIO) -> None:
        if next(calls) == "first":
            put_file(blobs, key, file)
            assert api.delete(path).status_code == 204
            assert not blobs.exists(key)
        else:
            scheduler.dispatch()  # no photo fails while its zip is missing
            put_file(blobs, key, file)

    monkeypatch.setattr(BlobStore, "put_file", meddled_with)
    assert accepted(api, archive) == path
    assert next(calls, None) is None
    make_old(place)
    expire(place)
    assert len(place.blobs.keys("archives")) == 1
    scheduler.dispatch()
    assert counts(api, path)["queued"] == 1
    assert place.redis.zscore(KNOWN_KEY, batch_of(path))


def test_a_post_that_fails_leaves_nothing(api: httpx.Client, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise BlobError("no room")

    monkeypatch.setattr(BlobStore, "put_file", full)
    assert post(api, packed(many(1))).status_code == 503
    assert not place.redis.keys("semples:batch*")
    assert place.redis.zcard(KNOWN_KEY) == 0


def test_a_post_that_fails_leaves_the_same_that_succeeds(
    api: httpx.Client, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = packed(many(1))
    put_file = BlobStore.put_file
    calls = iter(["fails"])
    paths = []

    def one_fails(blobs: BlobStore, key: str, file: BinaryIO) -> None:
        if next(calls, "succeeds") == "fails":
            paths.append(accepted(api, archive))  # meanwhile another client posts it
            raise BlobError("no room")
        put_file(blobs, key, file)

    monkeypatch.setattr(BlobStore, "put_file", one_fails)
    assert post(api, archive).status_code == 503
    assert api.get(paths[0]).json()["status"] == "queued"
    assert len(place.blobs.keys("archives")) == 1


def test_a_batch_that_is_reopened_is_not_deleted(
    api: httpx.Client, place: Place, scheduler: BatchScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is posted again between a DELETE's read of it and the lock: then it is canceled, as any open one."""
    archive = packed(many(1))
    path = accepted(api, archive)
    api.delete(path)
    delete = BatchService.delete

    def late(batches: BatchService, record: BatchRecord) -> bool:
        assert accepted(api, archive) == path
        return delete(batches, record)

    monkeypatch.setattr(BatchService, "delete", late)
    answer = api.delete(path)
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    assert len(place.blobs.keys("archives")) == 1


def test_a_job_that_a_person_cancels_is_canceled_in_all_batches(
    api: httpx.Client, place: Place, scheduler: BatchScheduler
) -> None:
    files = many(1)
    paths = [accepted(api, packed(files)), accepted(api, packed({**files, "readme.txt": "two"}))]
    scheduler.dispatch()
    api.delete(f"/jobs/{items(api, paths[0])[0]['job']}")
    scheduler.dispatch()
    assert [counts(api, path)["canceled"] for path in paths] == [1, 1]
    assert place.jobs.batch.count == 0


def test_a_job_that_another_batch_canceled_runs_for_this_one(
    api: httpx.Client, place: Place, scheduler: BatchScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is canceled by a request that does not see that the second has joined its job."""
    files = many(1)
    one = accepted(api, packed(files))
    two = accepted(api, packed({**files, "readme.txt": "another zip"}))
    scheduler.dispatch()
    with monkeypatch.context() as patch:
        patch.setattr(BatchStore, "in_flight", lambda *_: [])
        api.delete(one)
    assert place.jobs.batch.count == 0
    scheduler.dispatch()
    assert counts(api, two)["queued"] == place.jobs.batch.count == 1
    finish(place, items(api, two)[0]["job"])
    scheduler.dispatch()
    assert counts(api, two)["finished"] == 1


def test_a_job_that_is_posted_alone_outlives_the_batch_that_made_it(
    api: httpx.Client, place: Place, scheduler: BatchScheduler
) -> None:
    one = new_photo()
    files = {"labels.csv": rows({"a.png": "cat", "b.png": "cat"}), "a.png": one, "b.png": new_photo()}
    path = accepted(api, packed(files))
    scheduler.dispatch()
    assert place.jobs.batch.count == 2
    alone = post_image(api, one).json()
    assert alone["id"] == items(api, path)[0]["job"]
    api.delete(path)
    assert place.jobs.batch.count == 0
    assert place.jobs.interactive.get_job_ids() == [alone["id"]]
    # A person can still cancel it.
    assert api.delete(alone["links"]["self"]).json()["status"] == "canceled"
    assert place.jobs.interactive.count == 0
