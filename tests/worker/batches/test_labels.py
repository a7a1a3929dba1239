"""The four kinds of labels that a zip may bring, as those who have them zip them."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest

from models.data.classes import ClassInfo, ClassList
from service.api.errors import ProblemError
from service.batches.upload import ZipLimits, look_through, open_zip, read_items
from tests.helpers.batch_zips import packed, rows
from worker.batches.zips import DAMAGED, Zips
from worker.storage import BlobStore

CLASSES = ClassList((ClassInfo(3, "bowl"), ClassInfo(4, "cat", ("kitty",)), ClassInfo(9, "cup")))
LIMITS = ZipLimits(photos=10, photo_bytes=1000, total_bytes=10**6)


def labels(files: Mapping[str, bytes | str]) -> dict[str, tuple[str, ...]]:
    """What a zip's photos are labeled with; photos are not looked at here."""
    with open_zip(io.BytesIO(packed(files)), LIMITS) as archive:
        contents = look_through(archive, LIMITS)
        return {each.image: each.labels for each in read_items(archive, contents, CLASSES)}


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
    assert found == {
        f"{top}x/a.jpg": ("bowl", "cat"),
        f"{top}b.jpg": ("bowl",),
        f"{top}Annotated/c.PNG": (),
    }


def test_numbers_beyond_the_classes() -> None:
    with pytest.raises(
        ProblemError, match=r"image_labels\.txt:1: expected 'photo number number', numbers below 3"
    ):
        labels({"a.jpg": b"", "image_labels.txt": "a 3\n"})


def test_damaged_labels() -> None:
    data = bytearray(
        packed({"a.jpg": b"", "labels.csv": rows({"a.jpg": "cat"})}, method=zipfile.ZIP_STORED)
    )
    at = data.find(b"image,labels")
    data[at] ^= 1
    with (
        open_zip(io.BytesIO(bytes(data)), LIMITS) as archive,
        pytest.raises(ProblemError, match="the labels are damaged: Bad CRC-32"),
    ):
        read_items(archive, look_through(archive, LIMITS), CLASSES)


def test_large_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.batches.upload.MOST_BYTES", 99)
    with pytest.raises(ProblemError, match=r"'a\.json': expected labels of at most 99 bytes"):
        labels({"a.jpg": b"", "a.json": b" " * 100})
    monkeypatch.setattr("service.batches.upload.MOST_XML_BYTES", 150)
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
    """What the API has let in, the janitor must survive."""
    good = packed(
        {"a.jpg": b"0123456789" * 9, "b/ä.jpg": b"x", "labels.csv": rows({"a.jpg": "cat"})}
    )
    blobs = BlobStore.open(str(tmp_path))
    random = Random(0)
    let_in = 0
    for _ in range(300):
        data = bytearray(good)
        for _ in range(random.randint(1, 3)):
            data[random.randrange(len(data))] = random.choice((0, 1, 127, 128, 255))
        try:
            with open_zip(io.BytesIO(bytes(data)), LIMITS) as archive:
                contents = look_through(archive, LIMITS)
                items = read_items(archive, contents, CLASSES)
        except ProblemError:
            continue
        let_in += 1
        key = blobs.put("archives", bytes(data))
        zips = Zips(blobs)
        for item in items:
            with contextlib.suppress(*DAMAGED):
                zips.read(key, item.image)
        zips.close(key)
    assert let_in > 20
