"""Zips that will not do, by what is wrong with them, each with its answer: status, problem, words of the detail."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from typing import Any

from tests.helpers.batch_zips import packed, rows
from tests.helpers.service_fixtures import png

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
    "no labels": (
        packed({"a.png": png()}),
        422,
        "invalid-labels",
        "at the zip's root, or PASCAL VOC's .xml files: one of these, got none",
    ),
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
        "invalid-labels",
        "expected an annotation of PASCAL VOC in 0 a.xml, got a document type",
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
