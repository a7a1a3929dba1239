"""Zips that will not do: each is refused with a problem that names what is wrong, and leaves nothing behind."""

from __future__ import annotations

import errno
import io
import stat
import struct
import tempfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.errors import to_problem
from service.main import use_spool
from tests.batch_zips import packed, post, rows
from tests.service_doubles import Info
from tests.service_fixtures import Place, http_api, png
from worker.batch_keys import KNOWN_KEY
from worker.batch_zips import DAMAGED, Zips
from worker.blob_keys import file_key
from worker.blobs import BlobStore
from worker.presence import ModelInfo, WorkerInfo, announce

MOST = 300_000


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


GOOD: dict[str, bytes | str] = {"labels.csv": rows({"a.png": "cat"}), "a.png": png()}


def with_entry(name: str, content: bytes = b"x", *, mode: int = 0, **attributes: Any) -> bytes:
    """A good zip with one more entry."""
    buffer = io.BytesIO(packed(GOOD))
    with zipfile.ZipFile(buffer, "a") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        for key, value in attributes.items():
            setattr(entry, key, value)
        archive.writestr(entry, content)
    return buffer.getvalue()


def encrypted() -> bytes:
    """A zip whose entries say that they need a password."""
    data = bytearray(packed({**GOOD}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.rfind(signature)
        data[at + offset] |= 1
    return bytes(data)


def lying() -> bytes:
    """A zip whose directory says that a photo is smaller than it is."""
    files = {"labels.csv": rows({"a.png": "cat"}), "a.png": png(width=200)}
    data = bytearray(packed(files))
    at = data.rfind(b"PK\x01\x02")
    struct.pack_into("<I", data, at + 24, 10)
    return bytes(data)


CASES = {
    "not a zip": (b"photos", 415, "unsupported-archive", "expected a zip"),
    "a rar": (b"Rar!\x1a\x07\x01\x00", 415, "unsupported-archive", "expected a zip"),
    "nothing": (b"", 415, "unsupported-archive", "expected a zip"),
    "cut off": (packed(GOOD)[:-30], 422, "invalid-archive", "damaged or incomplete"),
    "up": (
        with_entry("../../b.png"),
        422,
        "invalid-archive",
        "'../../b.png': expected a path below",
    ),
    "absolute": (with_entry("/etc/b.png"), 422, "invalid-archive", "'/etc/b.png': expected"),
    "a drive": (with_entry("C:b.png"), 422, "invalid-archive", "'C:b.png': expected"),
    "backslash": (with_entry("..\\b.png"), 422, "invalid-archive", "expected a path below"),
    "a line break": (with_entry("b\n.png"), 422, "invalid-archive", "expected a path below"),
    "a link": (
        with_entry("b.png", b"/etc/passwd", mode=stat.S_IFLNK | 0o777),
        422,
        "invalid-archive",
        "'b.png': expected a file or a folder, got a link",
    ),
    "a fifo": (with_entry("b.png", mode=stat.S_IFIFO), 422, "invalid-archive", "got a link"),
    "a password": (encrypted(), 422, "invalid-archive", "'a.png': expected an entry without"),
    "bzip2": (
        packed(GOOD, method=zipfile.ZIP_BZIP2),
        422,
        "invalid-archive",
        "'labels.csv': expected an entry that is stored or deflated",
    ),
    "a bomb": (
        packed({**GOOD, "labels.csv": b"\0" * 20_000_000}),
        422,
        "invalid-archive",
        "'labels.csv': expected packing to save at most a factor of 200",
    ),
    "many small bombs": (
        packed({**GOOD, **{f"{n}.txt": b"\0" * 1_000_000 for n in range(2)}}),
        413,
        "archive-too-large",
        "expected at most 1200000 bytes once unpacked",
    ),
    "a large photo": (
        packed({**GOOD, "a.png": b"\0" * 100_001}),
        413,
        "archive-too-large",
        "'a.png': expected a photo of at most 100000 bytes",
    ),
    "six photos": (
        packed({**GOOD, **{f"{n}.png": png() for n in range(5)}}),
        413,
        "archive-too-large",
        "expected at most 5 photos, got 6",
    ),
    "many entries": (
        packed({**GOOD, **{f"{n}": b"" for n in range(200)}}),
        413,
        "archive-too-large",
        "expected at most 120 entries",
    ),
    "one stem twice": (
        packed({**GOOD, "folder/a.jpg": png()}),
        422,
        "invalid-archive",
        "'folder/a.jpg': expected names that differ without folder and ending, see 'a.png'",
    ),
    "one name twice": (
        with_entry("b.png").replace(b"b.png", b"a.png"),
        422,
        "invalid-archive",
        "'a.png': expected names",
    ),
    "an odd name": (
        packed({**GOOD, "#a.png": png()}),
        422,
        "invalid-archive",
        "'#a.png': expected",
    ),
    "no photo": (packed({"labels.csv": rows({})}), 422, "invalid-archive", "expected photos"),
    "no labels": (packed({"a.png": png()}), 422, "invalid-labels", "at the zip's root, one of"),
    "labels below": (
        packed({"a.png": png(), "b/labels.csv": rows({"a.png": "cat"})}),
        422,
        "invalid-labels",
        "got none",
    ),
    "two kinds": (
        packed({**GOOD, "a.json": "{}"}),
        422,
        "invalid-labels",
        "one of these, got 'labels.csv', 'a.json'",
    ),
    "no header": (
        packed({**GOOD, "labels.csv": "a.png,cat\n"}),
        422,
        "invalid-labels",
        "labels.csv:1: expected the header 'image,labels'",
    ),
    "not UTF-8": (
        packed({**GOOD, "labels.csv": b"image,labels\n\xff"}),
        422,
        "invalid-labels",
        "UTF-8",
    ),
    "no JSON": (
        packed({"a.png": png(), "a.json": "{"}),
        422,
        "invalid-labels",
        "expected JSON in a.json",
    ),
    "deep JSON": (
        packed({"a.png": png(), "a.json": "[" * 99_999}),
        422,
        "invalid-labels",
        "recursion",
    ),
    "odd JSON": (
        packed(
            {
                "a.png": png(),
                "a.json": '{"images": [], "annotations": [], "categories": [{"id": 1, "name": 5}]}',
            }
        ),
        422,
        "invalid-labels",
        "expected COCO's instances",
    ),
    "entities": (
        packed({"a.png": png(), "a.xml": '<!DOCTYPE a [<!ENTITY b "c">]><annotation/>'}),
        422,
        "invalid-archive",
        "'a.xml': expected XML without a document type",
    ),
    "no labeled photo": (
        packed({**GOOD, "labels.csv": rows({"a.png": ""})}),
        422,
        "invalid-labels",
        "at least one",
    ),
    "many labels": (
        packed({**GOOD, "labels.csv": rows({"a.png": ";".join(["cat"] * 33)})}),
        422,
        "invalid-labels",
        "'a.png': expected at most 32 labels, got 33",
    ),
    "labels twice": (
        packed(
            {
                "labels.csv": rows({"p/a.png": "cat", "a.png": "bowl"}),
                "p/a.png": png(),
                "b.png": png(),
            }
        ),
        422,
        "invalid-labels",
        "'a.png': expected labels of a photo once",
    ),
    "a document type in UTF-16": (
        packed(
            {
                "a.png": png(),
                "a.xml": '<!DOCTYPE a [<!ENTITY b "cat">]><annotation/>'.encode("utf-16"),
            }
        ),
        422,
        "invalid-labels",
        "a document type",
    ),
    "a size that is a lie": (lying(), 202, "", ""),
}


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
    monkeypatch.setattr("service.batches.MOST_UNDER_WAY", 1)
    first = post(api, packed(photos))
    assert first.status_code == 202
    refused = post(api, packed(photos | {"b.png": png()}))
    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/queue-full")
    assert refused.headers["Retry-After"] == "60"
    assert post(api, packed(photos)).json()["id"] == first.json()["id"]
    for status in (200, 204):
        assert api.delete(first.headers["Location"]).status_code == status
    monkeypatch.setattr("service.batches.MOST_UNDER_WAY", 100)
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
