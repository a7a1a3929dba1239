"""Uploaded zips: all kinds of labels, and the problem that each bad zip gets; nothing of one is left behind."""

import contextlib
import errno
import io
import json
import stat
import struct
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from models.data.classes import ClassInfo, ClassList
from service.api.errors import ProblemError, to_problem
from service.batches.slots import set_temp_directory
from service.batches.upload import ZipLimits, open_zip, read_items, validate_entries
from tests.helpers.batches import packed, post, rows
from tests.helpers.service_fixtures import Place, http_api, png
from worker.batches.store import KNOWN_KEY
from worker.batches.zips import DAMAGED, Zips
from worker.storage import BlobStore, file_key

MOST = 300_000
"""Bytes of a body that tests allow."""

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


Case = tuple[bytes, int, str, str]  # a zip, the status of its answer, the problem, words of the detail


def refused_as(status: int, kind: str) -> Callable[[bytes, str], Case]:
    return lambda data, detail: (data, status, kind, detail)


unsupported = refused_as(415, "unsupported-archive")
bad_archive = refused_as(422, "invalid-archive")
too_large = refused_as(413, "archive-too-large")


def bad_labels(files: Mapping[str, bytes | str], detail: str) -> Case:
    return packed(files), 422, "invalid-labels", detail


CASES = {
    "not a zip": unsupported(b"photos", "expected a zip"),
    "a rar": unsupported(b"Rar!\x1a\x07\x01\x00", "expected a zip"),
    "nothing": unsupported(b"", "expected a zip"),
    "cut off": bad_archive(packed(GOOD)[:-30], "damaged or incomplete"),
    "up": bad_archive(with_entry("../../b.png"), "'../../b.png': expected a path below"),
    "absolute": bad_archive(with_entry("/etc/b.png"), "'/etc/b.png': expected"),
    "a drive": bad_archive(with_entry("C:b.png"), "'C:b.png': expected"),
    "backslash": bad_archive(with_entry("..\\b.png"), "expected a path below"),
    "a line break": bad_archive(with_entry("b\n.png"), "expected a path below"),
    "a link": bad_archive(
        with_entry("b.png", b"/etc/passwd", mode=stat.S_IFLNK | 0o777),
        "'b.png': expected a file or a folder, got a link",
    ),
    "a fifo": bad_archive(with_entry("b.png", mode=stat.S_IFIFO), "got a link"),
    "a password": bad_archive(encrypted(), "'a.png': expected an entry without"),
    "bzip2": bad_archive(
        packed(GOOD, method=zipfile.ZIP_BZIP2), "'labels.csv': expected an entry that is stored or deflated"
    ),
    "a bomb": bad_archive(
        packed({**GOOD, "labels.csv": b"\x00" * 20_000_000}),
        "'labels.csv': expected packing to save at most a factor of 200",
    ),
    "many small bombs": too_large(
        packed({**GOOD, **{f"{n}.txt": b"\x00" * 1_000_000 for n in range(2)}}),
        "expected at most 1200000 bytes once unpacked",
    ),
    "a large photo": too_large(
        packed({**GOOD, "a.png": b"\x00" * 100_001}), "'a.png': expected a photo of at most 100000 bytes"
    ),
    "six photos": too_large(
        packed({**GOOD, **{f"{n}.png": png() for n in range(5)}}), "expected at most 5 photos, got 6"
    ),
    "many entries": too_large(packed({**GOOD, **{f"{n}": b"" for n in range(200)}}), "expected at most 120 entries"),
    "one stem twice": bad_archive(
        packed({**GOOD, "a.jpg": png()}),
        "'a.jpg': expected photos whose results have different names, got 'a.png' and 'a.jpg': both are a.png",
    ),
    "one stem in two cases": bad_archive(packed({**GOOD, "A.png": png()}), "'A.png': expected photos whose results"),
    "one name in two cases": bad_archive(
        packed({**GOOD, "f/\u00c9.jpg": png(), "f/e\u0301.png": png()}),
        "'f/e\u0301.png': expected photos whose results",
    ),
    "one name twice": bad_archive(with_entry("b.png").replace(b"b.png", b"a.png"), "'a.png': expected photos whose"),
    "a name that is too long with its folder": bad_archive(
        packed({**GOOD, f"{'f' * 120}/{'g' * 70}/b.png": png(), f"{'f' * 120}/{'g' * 119}/b.jpg": png()}),
        "expected names of masks, with folders, of at most 240 bytes, got 244 for ffff",
    ),
    "an odd name": bad_archive(packed({**GOOD, "#a.png": png()}), "'#a.png': expected"),
    "no photo": bad_archive(packed({"labels.csv": rows({})}), "expected photos"),
    "no labels": bad_labels({"a.png": png()}, "at the zip's root, or PASCAL VOC's .xml files: one of these, got none"),
    "labels below": bad_labels({"a.png": png(), "b/labels.csv": rows({"a.png": "cat"})}, "got none"),
    "two kinds": bad_labels({**GOOD, "a.json": "{}"}, "one of these, got 'labels.csv', 'a.json'"),
    "no header": bad_labels({**GOOD, "labels.csv": "a.png,cat\n"}, "labels.csv:1: expected the header 'image,labels'"),
    "not UTF-8": bad_labels({**GOOD, "labels.csv": b"image,labels\n\xff"}, "UTF-8"),
    "no JSON": bad_labels({"a.png": png(), "a.json": "{"}, "expected JSON in a.json"),
    "deep JSON": bad_labels({"a.png": png(), "a.json": "[" * 99_999}, "recursion"),
    "odd JSON": bad_labels(
        {"a.png": png(), "a.json": '{"images": [], "annotations": [], "categories": [{"id": 1}]}'},
        "expected COCO's instances",
    ),
    "entities": bad_labels(
        {"a.png": png(), "a.xml": '<!DOCTYPE a [<!ENTITY b "c">]><annotation/>'},
        "expected an annotation of PASCAL VOC in 0/a.xml, got a document type",
    ),
    "no labeled photo": bad_labels({**GOOD, "labels.csv": rows({"a.png": ""})}, "at least one"),
    "many labels": bad_labels(
        {**GOOD, "labels.csv": rows({"a.png": ";".join(f"cat{n}" for n in range(33))})},
        "'a.png': expected at most 32 labels, got 33",
    ),
    "labels twice": bad_labels(
        {"labels.csv": rows({"p/a.png": "cat", "a.png": "bowl"}), "p/a.png": png(), "b.png": png()},
        "'a.png': expected labels of a photo once, got them in the row of 'p/a.png' too",
    ),
    "a document type in UTF-16": bad_labels(
        {"a.png": png(), "a.xml": '<!DOCTYPE a [<!ENTITY b "cat">]><annotation/>'.encode("utf-16")}, "a document type"
    ),
    "a size that is a lie": (lying(), 202, "", ""),
}


@pytest.fixture(scope="module")
def api(place: Place) -> Iterator[httpx.Client]:
    """Without a worker: nothing here comes to a queue."""
    with http_api(place, max_batch_bytes=MOST, max_batch_photos=5, max_body_bytes=100_000) as client:
        yield client


@pytest.fixture(autouse=True)
def announced_and_nothing_kept(place: Place) -> Iterator[None]:
    place.announce(lease=60)
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
        found = answer.json()
        assert found.get("entry", found.get("image")) == detail.split("'")[1]


def test_labels_without_photos_are_named(api: httpx.Client) -> None:
    labels = rows({"a.png": "cat", **{f"lost{n}.jpg": "cat" for n in range(12)}})
    answer = post(api, packed({**GOOD, "labels.csv": labels}))
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-labels")
    assert answer.json()["missing"] == [f"lost{n}.jpg" for n in range(10)]
    assert answer.json()["missing_total"] == 12


def test_a_batch_says_how_labels_found_their_photos(api: httpx.Client) -> None:
    photos = {"a.png": png(), "s/B.png": png(), "c.png": png()}
    answer = post(api, packed({**photos, "Labels.CSV": "Image;Label\nA;cats\nC:\\s\\b.png;Bowl\nc.png;cat\nA;bowl\n"}))
    assert answer.status_code == 202
    assert answer.json()["matched"] == {"path": 1, "ending": 1, "tail": 1}
    path = answer.json()["links"]["self"]
    assert api.get(path).json()["matched"] == answer.json()["matched"]
    found = api.get(f"{path}/items").json()["items"]
    assert [(each["image"], each["labels"]) for each in found] == [
        ("a.png", ["cat", "bowl"]),
        ("s/B.png", ["bowl"]),
        ("c.png", ["cat"]),
    ]
    for status in (200, 204):
        assert api.delete(path).status_code == status


def test_unknown_labels_name_the_nearest_known_ones(api: httpx.Client) -> None:
    answer = post(api, packed({**GOOD, "labels.csv": rows({"a.png": "cat;boowl"})}))
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/unknown-label")
    found = answer.json()
    assert (found["image"], found["label"], found["nearest"][0]) == ("a.png", "boowl", "bowl")


@pytest.mark.parametrize(
    "options",
    [
        {"refine": "magic"},
        {"background_threshold": "2"},
        {"background_threshold": "0.5", "background_power": "2"},
        {"model": "another"},
        {"labels": "cat"},
    ],
)
def test_bad_options(api: httpx.Client, options: dict[str, str]) -> None:
    answer = post(api, packed(GOOD), **options)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-request")


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
    assert answer.json()["matched"] == {"path": 1}
    path = answer.json()["links"]["self"]
    assert api.delete(path).status_code == 200
    assert api.delete(path).status_code == 204


def test_open_batches_and_memory_are_bounded(api: httpx.Client, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = {"labels.csv": rows({"a.png": "cat"}), "a.png": png()}
    monkeypatch.setattr("service.batches.service.MAX_OPEN_BATCHES", 1)
    first = post(api, packed(photos))
    assert first.status_code == 202
    refused = post(api, packed(photos | {"b.png": png()}))
    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/queue-full")
    assert refused.headers["Retry-After"] == "60"
    assert post(api, packed(photos)).json()["id"] == first.json()["id"]
    for status in (200, 204):
        assert api.delete(first.headers["Location"]).status_code == status
    monkeypatch.setattr("service.batches.service.MAX_OPEN_BATCHES", 100)
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
    with contextlib.suppress(*DAMAGED):
        assert len(Zips(blobs).read(key, "a.png")) == 1000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000


def test_no_room_to_receive_a_zip(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)  # and back to what it was
    set_temp_directory(str(tmp_path / "new" / "spool"))
    assert Path(tempfile.gettempdir()) == tmp_path / "new" / "spool"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with http_api(place) as roomy:
        answer = post(roomy, b"PK" + bytes(2**21))
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/storage-full")
    full = to_problem(OSError(errno.ENOSPC, "no room"))
    assert full.kind.name == "storage-full"


CLASSES = ClassList((ClassInfo(3, "bowl"), ClassInfo(4, "cat", ("kitty",)), ClassInfo(9, "cup")))
LIMITS = ZipLimits(photos=10, photo_bytes=1000, total_bytes=10**6)


def labels(files: Mapping[str, bytes | str]) -> dict[str, tuple[str, ...]]:
    """What a zip's photos are labeled with; photos are not looked at here."""
    with open_zip(io.BytesIO(packed(files)), LIMITS) as archive:
        listing = validate_entries(archive, LIMITS)
        return {each.image: each.labels for each in read_items(archive, listing, CLASSES)[0]}


def xml(image: str, *names: str) -> str:
    objects = "".join(f"<object><name>{name}</name></object>" for name in names)
    return f"<!-- by hand --><annotation><filename>{image}</filename>{objects}</annotation>"


COCO = json.dumps(
    {
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": 2, "width": 2},
            {"id": 2, "file_name": "b.jpg", "height": 2, "width": 2},
        ],
        "categories": [{"id": 7, "name": "Kitty"}, {"id": 8, "name": "bowl"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "segmentation": []},
            {"id": 2, "image_id": 1, "category_id": 8, "segmentation": []},
            {"id": 3, "image_id": 2, "category_id": 8, "segmentation": []},
        ],
    }
)


@pytest.mark.parametrize("top", ["", "photos/"])
@pytest.mark.parametrize(
    "files",
    [
        {"labels.csv": rows({"x/a.jpg": "kitty;bowl", "b.jpg": "bowl"})},
        {"image_labels.txt": "a 1 0\nb.jpg 0\n"},
        {"image_labels.txt": "a 0 1\nb 1\n", "classes.txt": "0 background\n1 kitty\n2 bowl\n"},
        {"a.xml": xml("a.jpg", "cat", "bowl", "cat"), "b.xml": xml("b.jpg", "bowl")},
        {"Annotations/1.xml": xml("a.jpg", "cat", "bowl"), "x/1.xml": xml("b.jpg", "bowl")},
        {"instances.json": COCO},
    ],
    ids=["csv", "numbers", "numbers of classes", "xml", "xml below", "coco"],
)
def test_all_kinds(files: dict[str, str], top: str) -> None:
    photos = {"x/a.jpg": b"", "b.jpg": b"", "Annotated/c.PNG": b""}
    found = labels({f"{top}{name}": content for name, content in {**files, **photos}.items()})
    assert found == {f"{top}x/a.jpg": ("bowl", "cat"), f"{top}b.jpg": ("bowl",), f"{top}Annotated/c.PNG": ()}


def test_numbers_beyond_the_classes() -> None:
    with pytest.raises(ProblemError, match=r"image_labels\.txt:1: expected 'photo number number', numbers below 3"):
        labels({"a.jpg": b"", "image_labels.txt": "a 3\n"})


def test_damaged_labels() -> None:
    data = bytearray(packed({"a.jpg": b"", "labels.csv": rows({"a.jpg": "cat"})}, method=zipfile.ZIP_STORED))
    at = data.find(b"image,labels")
    data[at] ^= 1
    with (
        open_zip(io.BytesIO(bytes(data)), LIMITS) as archive,
        pytest.raises(ProblemError, match="the labels are damaged: Bad CRC-32"),
    ):
        read_items(archive, validate_entries(archive, LIMITS), CLASSES)


def test_large_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.batches.upload.MAX_LABEL_BYTES", 99)
    with pytest.raises(ProblemError, match=r"'a\.json': expected labels of at most 99 bytes"):
        labels({"a.jpg": b"", "a.json": b" " * 100})
    monkeypatch.setattr("service.batches.upload.MAX_XML_BYTES", 150)
    with pytest.raises(ProblemError, match="expected XML files of at most 150 bytes together"):
        labels({"a.jpg": b"", "a.xml": b" " * 80, "b.xml": b" " * 80})


def test_names_that_no_text_can_hold() -> None:
    odd = COCO.replace("a.jpg", "\\ud800.jpg")
    with pytest.raises(ProblemError) as caught:
        labels({"a.jpg": b"", "b.jpg": b"", "a.json": odd})
    assert caught.value.members["missing"] == ["?.jpg"]


def test_long_names() -> None:
    with pytest.raises(ProblemError, match="expected names of at most 240 bytes"):
        labels({"ä" * 119 + ".jpg": b"", "labels.csv": rows({})})
    name = "ä" * 118 + ".jpg"
    assert labels({name: b"", "ö" * 118 + ".xml": xml(name, "cat")}) == {name: ("cat",)}


def test_damage_anywhere_is_a_problem_and_nothing_else(tmp_path: Path) -> None:
    """What the API accepts, the janitor must survive."""
    good = packed({"a.jpg": b"0123456789" * 9, "b/ä.jpg": b"x", "labels.csv": rows({"a.jpg": "cat"})})
    blobs = BlobStore.open(str(tmp_path))
    random = Random(0)
    accepted = 0
    for _ in range(300):
        data = bytearray(good)
        for _ in range(random.randint(1, 3)):
            data[random.randrange(len(data))] = random.choice((0, 1, 127, 128, 255))
        try:
            with open_zip(io.BytesIO(bytes(data)), LIMITS) as archive:
                listing = validate_entries(archive, LIMITS)
                items, _ = read_items(archive, listing, CLASSES)
        except ProblemError:
            continue
        accepted += 1
        key = blobs.put("archives", bytes(data))
        zips = Zips(blobs)
        for item in items:
            with contextlib.suppress(*DAMAGED):
                zips.read(key, item.image)
        zips.close(key)
    assert accepted > 20
