import json
from pathlib import Path
from typing import Any

import pytest

from models.data.classes import ClassInfo, ClassList
from models.data.coco import read_instances
from models.data.labels import classes_of, label_rows_csv, read_folder, read_label_rows, read_labels
from models.data.voc import parse_xml, read_annotation
from tests.conftest import CLASSES

INSTANCES: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "height": 30, "width": 40},
        {"id": 8, "file_name": "below/b.png", "height": 20, "width": 10},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 9, "segmentation": [[0, 0, 1, 0, 1, 1]]},
        {"id": 2, "image_id": 7, "category_id": 4, "segmentation": [], "iscrowd": 1},
        {"id": 3, "image_id": 7, "category_id": 9, "segmentation": []},
    ],
    "categories": [{"id": 9, "name": "dining table"}, {"id": 4, "name": "cat"}],
}
XML = """<annotation><filename>{name}</filename><size><width>40</width><height>30</height></size>
<object><name>cat</name><part><name>head</name></part></object><object><name>cup</name></object>
<object><name>cat</name><difficult>1</difficult></object></annotation>"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.txt", "a 0 3\n\nb.png\nc.d 1\n")
    assert read_labels(path, CLASSES) == {"a.jpg": ("bowl", "dining table"), "b.png": (), "c.d.jpg": ("cat",)}
    with pytest.raises(ValueError, match=r"expected --classes, .*labels\.txt"):
        classes_of(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 0\nb 4\n", r":2: expected 'photo number number', numbers below 4, got 'b 4'"),
        ("a cat\n", r":1: expected 'photo number number'"),
        ("a -1\n", r":1: expected 'photo number number'"),
        ("a 0\na.jpg 1\n", r":2: expected each image once, got 'a.jpg' again"),
    ],
)
def test_bad_numbers(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_labels(write(tmp_path / "labels.txt", text), CLASSES)


def test_voc_xml(tmp_path: Path) -> None:
    path = write(tmp_path / "a.xml", XML.format(name="a.jpg"))
    write(tmp_path / "b.xml", "<annotation><filename>b.jpg</filename></annotation>")
    assert read_annotation(path).size == (30, 40)
    assert read_annotation(tmp_path / "b.xml").size is None
    assert read_labels(tmp_path, CLASSES) == {"a.jpg": ("cat", "cup"), "b.jpg": ()}
    assert classes_of(tmp_path).names == ("cat", "cup")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", r"expected an annotation of PASCAL VOC in .*b\.xml, got no element found"),
        ("<svg><filename>x</filename></svg>", "got no annotation with a filename but 'svg'"),
        ("<annotation/>", "got no annotation with a filename"),
        (XML.format(name="b.jpg").replace("40", "wide"), "got invalid literal"),
        (XML.format(name="a.jpg"), r"b\.xml: expected each image once, got 'a\.jpg' again"),
    ],
)
def test_bad_xml(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "a.xml", XML.format(name="a.jpg"))
    write(tmp_path / "b.xml", text)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path, CLASSES)


def test_a_folder_without_xml(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected \*\.xml files in .*, got none"):
        read_labels(tmp_path, CLASSES)


def test_coco_json(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.json", json.dumps(INSTANCES))
    assert read_labels(path, CLASSES) == {"a.jpg": ("cat", "dining table"), "below/b.png": ()}
    assert classes_of(path) == ClassList((ClassInfo(9, "dining table"), ClassInfo(4, "cat")))
    assert read_instances(path).sizes["below/b.png"] == (20, 10)


def changed(key: str, value: object) -> dict[str, Any]:
    """The annotation file with one field of its first entry changed."""
    section, field = key.split(".")
    first, *others = INSTANCES[section]
    return INSTANCES | {section: [first | {field: value}, *others]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"expected JSON in .*x\.json, got Expecting"),
        ([], r"expected COCO's instances \(images, annotations, categories\) in .*, got list"),
        ({"info": {}, "images": [], "annotations": []}, r"got \['annotations', 'images', 'info'\]"),
        (changed("annotations.category_id", 5), "got annotation 1 without a known category"),
        (changed("annotations.segmentation", "x"), "without a known category or a segmentation"),
        (changed("annotations.image_id", 99), "got no 99"),
        (changed("categories.id", 300), "from 1 to 254, got 300"),
        (changed("images.file_name", "below/b.png"), "got a photo twice"),
        (changed("images.height", None), "got int"),
        (INSTANCES | {"annotations": [{"id": 1, "caption": "a cat"}]}, "got no 'category_id'"),
        (INSTANCES | {"images": 3}, "expected COCO's instances in"),
    ],
)
def test_bad_json(tmp_path: Path, content: object, message: str) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    with pytest.raises(ValueError, match=message):
        read_labels(write(tmp_path / "x.json", text), CLASSES)


def test_csv_round_trip(tmp_path: Path) -> None:
    rows = {"a.jpg": ("cat", "dining table"), 'b,"c".png': ()}
    path = tmp_path / "labels.csv"
    path.write_bytes(label_rows_csv(rows))
    assert read_label_rows(path) == rows


NAMED = CLASSES.with_synonyms({"cup": ["mug"]})


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.png").touch()
    labels = write(tmp_path / "labels.csv", "image,labels\r\na.jpg,cup;cat;mug\r\nb.png,\r\n")
    samples = read_folder(tmp_path, labels, NAMED)
    assert [(each.stem, each.channels) for each in samples] == [("a", (1, 2)), ("b", ())]
    assert classes_of(labels).names == ("cat", "cup", "mug")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,labels\na.jpg,cat\n", ":1: expected the header 'image,labels'"),
        ("image,labels\na.jpg,cat\na.jpg,cup\n", ":3: expected each image once, got 'a.jpg'"),
        ("image,labels\na.jpg\n", ":2: expected 'image,label;label'"),
        ("image,labels\na.jpg,cat,cup\n", ":2: expected 'image,label;label'"),
        ("image,labels\na.jpg,dog\n", "a.jpg: expected a known label, got 'dog'"),
        ("image,labels\nz.jpg,cat\n", "expected an image 'z.jpg'"),
        ("image,labels\na.jpg,cat\na.png,cat\n", "expected distinct stems, got 'a.jpg' and 'a.png'"),
        ("image,labels\na.jpg,\n", "expected at least one labeled image"),
    ],
)
def test_bad_label_files(tmp_path: Path, text: str, message: str) -> None:
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        read_folder(tmp_path, write(tmp_path / "labels.csv", text), NAMED)


@pytest.mark.parametrize("name", ["../a.jpg", "{folder}/a.jpg"])
def test_photos_lie_below_their_folder(name: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "a.jpg").touch()
    labels = write(tmp_path / "labels.csv", f"image,labels\n{name.format(folder=images)},cat\n")
    with pytest.raises(ValueError, match=r"labels.csv: expected an image below .*images, got '"):
        read_folder(images, labels, NAMED)


GROWING = '<!DOCTYPE a [<!ENTITY b "cat">]><annotation>&b;</annotation>'


@pytest.mark.parametrize("content", ["<a><b>cät</b></a>", "<a><b>cät</b></a>".encode("utf-16")])
def test_read(content: str | bytes) -> None:
    assert parse_xml(content).findtext("b") == "cät"


@pytest.mark.parametrize(
    "content",
    [
        GROWING,
        GROWING.encode(),
        GROWING.encode("utf-16"),
        # An encoding in which no search for bytes finds it.
        ("<?xml version='1.0' encoding='cp037'?>" + GROWING).encode("cp037"),
    ],
)
def test_document_types(content: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"a document type|not well-formed"):
        parse_xml(content)


@pytest.mark.parametrize("content", ["", "<a>", "\0", b'<?xml version="1.0" encoding="foo"?><a/>'])
def test_no_xml(content: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"no element|unclosed|not well-formed|unknown encoding"):
        parse_xml(content)
