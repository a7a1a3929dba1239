"""The client's batches against the real service: what it sends is taken, what it reads is there."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import Client, NotFound
from service.local.supervisor import Child
from tests.helpers.batch_zips import many, packed
from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, http_api, wait_for


@pytest.fixture
def client(place: Place, worker: WorkerProcess, feeding: Child) -> Iterator[Client]:
    del worker, feeding
    with http_api(place) as api, Client(str(api.base_url)) as there:
        yield there
    wait_for(lambda: place.leftovers() == NOTHING, what="an empty queue")


def test_a_zip_goes_in_and_an_archive_comes_out(client: Client, tmp_path: Path) -> None:
    photos = tmp_path / "photos.zip"
    photos.write_bytes(packed(many(3) | {"bad.png": b"no picture"}))
    batch = client.submit_batch(photos, refine="none")
    batch = client.wait_for_batch(batch.id)
    assert (batch.status, batch.counts["finished"], batch.counts["failed"]) == ("finished", 3, 1)
    (failed,) = client.batch_items(batch.id, status="failed")
    assert failed["image"] == "bad.png"
    assert client.batch_report(batch.id)["photos"] == 3
    archive = client.save_archive(batch.id, tmp_path / "out.zip", format="voc")
    with zipfile.ZipFile(archive) as masks:
        names = [name for name in masks.namelist() if name.startswith("SegmentationClass/")]
    assert sorted(names) == [f"SegmentationClass/{number}.png" for number in range(3)]
    assert client.submit_batch(photos, refine="none").id == batch.id


def test_a_batch_is_canceled_then_forgotten(client: Client, tmp_path: Path) -> None:
    photos = tmp_path / "photos.zip"
    photos.write_bytes(packed(many(3, "slow")))
    batch = client.submit_batch(photos)
    client.cancel_batch(batch.id)
    assert client.batch_status(batch.id).status == "canceled"
    client.cancel_batch(batch.id)
    with pytest.raises(NotFound):
        client.batch_status(batch.id)
