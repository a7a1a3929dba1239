"""Zips that will not do: each is refused with a problem that names what is wrong, and leaves nothing behind."""

from __future__ import annotations

import errno
import io
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from service.api.errors import to_problem
from service.batches.upload import use_spool
from tests.helpers.bad_zips import CASES, GOOD, MOST
from tests.helpers.batch_zips import packed, post, rows
from tests.helpers.service_doubles import Info
from tests.helpers.service_fixtures import Place, http_api, png
from worker.batches.records import KNOWN_KEY
from worker.batches.zips import DAMAGED, Zips
from worker.queue.registry import ModelInfo, WorkerInfo, announce
from worker.storage import BlobStore, file_key


@pytest.fixture(scope="module")
def api(place: Place) -> Iterator[httpx.Client]:
    """Without a worker: nothing here comes to a queue."""
    with http_api(
        place, max_batch_bytes=MOST, max_batch_photos=5, max_body_bytes=100_000
    ) as client:
        yield client


@pytest.fixture(autouse=True)
def announced_and_nothing_kept(place: Place) -> Iterator[None]:
    model = ModelInfo.model_validate(Info().to_json())
    info = WorkerInfo(name="w", model=model.ref, device="cpu", host="h", pid=1)
    announce(place.redis, info, model, lease=60)
    yield
    assert place.redis.zcard(KNOWN_KEY) == 0
    assert place.blobs.keys("archives") == []


@pytest.mark.parametrize("case", [each for each in CASES if CASES[each][1] != 202])
def test_bad_zips(api: httpx.Client, case: str) -> None:
    data, status, kind, detail = CASES[case]
    answer = post(api, data)
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{kind}")
    assert answer.headers["content-type"] == "application/problem+json"
    assert detail in answer.json()["detail"]
    assert "/tmp" not in answer.text
    if detail.startswith("'"):
        told = answer.json()
        assert told.get("entry", told.get("image")) == detail.split("'")[1]


def test_labels_without_photos_are_named(api: httpx.Client) -> None:
    labels = rows({"a.png": "cat", **{f"lost{n}.jpg": "cat" for n in range(12)}})
    answer = post(api, packed({**GOOD, "labels.csv": labels}))
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-labels")
    assert answer.json()["missing"] == [f"lost{n}.jpg" for n in range(10)]
    assert answer.json()["missing_total"] == 12


def test_unknown_labels_name_the_nearest_known_ones(api: httpx.Client) -> None:
    answer = post(api, packed({**GOOD, "labels.csv": rows({"a.png": "cat;boowl"})}))
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/unknown-label")
    told = answer.json()
    assert (told["image"], told["label"], told["nearest"][0]) == ("a.png", "boowl", "bowl")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"refine": "magic"}, "invalid-request"),
        ({"background_threshold": "2"}, "invalid-request"),
        ({"background_threshold": "0.5", "background_power": "2"}, "invalid-request"),
        ({"model": "another"}, "invalid-request"),
        ({"labels": "cat"}, "invalid-request"),
    ],
)
def test_bad_options(api: httpx.Client, options: dict[str, str], kind: str) -> None:
    answer = post(api, packed(GOOD), **options)
    assert (answer.status_code, answer.json()["type"]) == (422, f"/problems/{kind}")


def test_bodies_of_batches_have_a_limit_of_their_own(api: httpx.Client) -> None:
    answer = post(api, b"PK" + b"\0" * MOST)
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/body-too-large")
    between = post(api, b"PK" + b"\0" * (MOST // 2))
    assert between.json()["type"] == "/problems/invalid-archive"
    alone = api.post("/pseudo-mask", files={"image": b"\0" * (MOST // 2)}, data={"labels": "cat"})
    assert alone.json()["type"] == "/problems/body-too-large"


def test_without_a_form_or_a_key(api: httpx.Client, place: Place) -> None:
    assert api.post("/batches", json={}).status_code == 415
    assert api.post("/batches", files={"other": b""}).status_code == 422
    with http_api(place, keys="alice sha256:" + "0" * 64) as locked:
        assert post(locked, b"never read").status_code == 401


def test_photos_are_not_read_when_the_zip_is_posted(api: httpx.Client) -> None:
    """A photo's own damage is the photo's: see the items."""
    data, *_ = CASES["a size that is a lie"]
    answer = post(api, data)
    assert answer.status_code == 202
    path = answer.json()["links"]["self"]
    assert api.delete(path).status_code == 200
    assert api.delete(path).status_code == 204


def test_no_more_batches_than_can_be_looked_after(
    api: httpx.Client, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = {"labels.csv": rows({"a.png": "cat"}), "a.png": png()}
    monkeypatch.setattr("service.batches.service.MOST_UNDER_WAY", 1)
    first = post(api, packed(photos))
    assert first.status_code == 202
    refused = post(api, packed(photos | {"b.png": png()}))
    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/queue-full")
    assert refused.headers["Retry-After"] == "60"
    assert post(api, packed(photos)).json()["id"] == first.json()["id"]
    for status in (200, 204):
        assert api.delete(first.headers["Location"]).status_code == status
    monkeypatch.setattr("service.batches.service.MOST_UNDER_WAY", 100)
    place.redis.config_set("maxmemory", int(1.2 * place.redis.info("memory")["used_memory"]))
    try:
        assert post(api, packed(photos)).json()["type"] == "/problems/queue-full"
    finally:
        place.redis.config_set("maxmemory", 0)


def test_no_more_is_unpacked_than_an_entry_says(tmp_path: Path) -> None:
    """It says 1,000 bytes, and would be 40 MB."""
    data = packed({"a.png": bytes(40_000_000)})
    bomb = data.replace((40_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    assert bomb.count((1000).to_bytes(4, "little")) == 2
    blobs = BlobStore.open(str(tmp_path))
    key = file_key("archives", io.BytesIO(bomb))
    blobs.put_file(key, io.BytesIO(bomb))
    tracemalloc.start()
    with suppress(*DAMAGED):
        assert len(Zips(blobs).read(key, "a.png")) == 1000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000


def test_no_room_to_receive_a_zip(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)  # and back to what it was
    use_spool(str(tmp_path / "new" / "spool"))
    assert Path(tempfile.gettempdir()) == tmp_path / "new" / "spool"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with http_api(place) as roomy:
        answer = post(roomy, b"PK" + bytes(2**21))
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/storage-full")
    full = to_problem(OSError(errno.ENOSPC, "no room"))
    assert full.kind.name == "storage-full"
