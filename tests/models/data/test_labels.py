import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
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


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def labels_in(path: Path, classes: ClassList = CLASSES) -> dict[str, tuple[str, ...]]:
    """Labels by image, as a label file names it."""
    rows = read_labels(path, classes)
    found = {row.image: row.labels for row in rows}
    assert len(found) == len(rows)
    return found


def test_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.TXT", "a 0 3\n\nb.png\nc.d 1\na.jpg 1 0\n")
    assert labels_in(path) == {"a.jpg": ("bowl", "dining table", "cat"), "b.png": (), "c.d.jpg": ("cat",)}
    with pytest.raises(ValueError, match=r"expected --classes, .*labels\.TXT"):
        classes_of(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 0\nb 4\n", r":2: expected 'photo number number', numbers below 4, got 'b 4'"),
        ("a cat\n", r":1: expected 'photo number number'"),
        ("a -1\n", r":1: expected 'photo number number'"),
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
    assert labels_in(tmp_path) == {"a.jpg": ("cat", "cup"), "b.jpg": ()}
    assert classes_of(tmp_path).names == ("cat", "cup")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", r"expected an annotation of PASCAL VOC in .*b\.xml, got no element found"),
        ("<svg><filename>x</filename></svg>", "got no annotation but 'svg'"),
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
    assert labels_in(path) == {"a.jpg": ("dining table", "cat"), "below/b.png": ()}
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
        (changed("annotations.image_id", 99), "got no 99"),
        (changed("images.file_name", "below/b.png"), "got a photo twice"),
        (changed("categories.id", []), "unhashable type"),
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
        ("image,labels\na.jpg\n", ":2: expected 'image,label;label'"),
        ("image,labels\na.jpg,cat,cup\n", ":2: expected 'image,label;label'"),
        ("image,labels\na.jpg,dog\n", "a.jpg: expected a known label, got 'dog'"),
        ("image,labels\nz.jpg,cat\n", "got none for 1: 'z.jpg'"),
        (
            "image,labels\na.jpg,cat\na.png,cat\n",
            "results have different names, got 'a.jpg' and 'a.png': both are a.png",
        ),
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
    with pytest.raises(ValueError, match=r"labels.csv: expected a photo for all labels, got none for 1: '"):
        read_folder(images, labels, NAMED)


SHEETS = {
    "semicolons": "image;labels\na.jpg;cat,cup\nb/b.png;\n",
    "tabs": "image\tlabels\na.jpg\tcat;cup\nb/b.png\t\n",
    "Excel's hint": 'sep=;\r\nimage;labels\r\na.jpg;"cat;cup"\r\nb/b.png;\r\n',
    "all quoted": '"image","labels"\n"a.jpg","cat, cup"\n"b/b.png",""\n',
    "case and blanks": " Image , LABELS \na.jpg , cat ; cup\n b/b.png ,\n",
    "singular": "image,label\na.jpg,cat\nb/b.png,\na.jpg,cup\n",
    "byte order mark": "\ufeffimage,labels\na.jpg,cat;cup\nb/b.png,\n",
    "UTF-16, as Excel's Unicode text": "\ufeffimage\tlabels\r\na.jpg\tcat;cup\r\nb/b.png\t\r\n".encode("utf-16-le"),
    "old line ends": "image,labels\ra.jpg,cat;cup\rb/b.png,\r",
    "a row a label": "image,labels\na.jpg,cat\nb/b.png,\na.jpg,cup\na.jpg,cat\n",
    "a row a label, spelled in two ways": "image,labels\n./a.jpg,cat\nb\\b.png,\na.jpg,cup\nb/b.png,\n",
    "empty rows": ",,\nimage,labels,\n,\na.jpg,cat;cup,,\n;\n\nb/b.png,,\n , \n,,\n".replace(";\n", ""),
    "trailing delimiters": "image,labels,,\na.jpg,cat;cup,,\nb/b.png,,,,,\n",
    "lines in a cell": 'image,labels\na.jpg,"cat\ncup"\nb/b.png,\n',
    "other columns": ",image,photographer,labels,size\n0,a.jpg,me,cat;cup,3\n1,b/b.png,you,,4\n",
}


@pytest.mark.parametrize("sheet", SHEETS)
def test_tables_as_spreadsheets_write_them(tmp_path: Path, sheet: str) -> None:
    rows = read_label_rows(write(tmp_path / "labels.csv", SHEETS[sheet]))
    assert [(name.removeprefix("./").replace("\\", "/"), labels) for name, labels in rows.items()] == [
        ("a.jpg", ("cat", "cup")),
        ("b/b.png", ()),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image,labels\n\na.jpg,cat,cup\n",
            r":3: expected 'image,label;label', all labels in one cell, got 'a.jpg,cat,cup'",
        ),
        (
            "image;labels\na.jpg;cat;cup\n",
            r":2: expected 'image;label,label', all labels in one cell, got 'a.jpg;cat;cup'",
        ),
        ("image\tlabels\t\na.jpg\tcat\tcup\n", r":2: expected 'image\\tlabel;label'"),
        ("image,labels\n,cat\n", ":2: expected 'image,label;label', .* got ',cat'"),
        ("image;labels\na.jpg,cat\n", ":2: expected 'image;label,label'"),
        ("image,labels\na.jpg;cat\n", ":2: expected 'image,label;label'"),
        ("image|labels\na.jpg|cat\n", r":1: expected the header 'image,labels', got 'image\|labels'"),
        ("a.jpg;cat\n", ":1: expected the header 'image,labels', got 'a.jpg;cat'"),
        ("", ":1: expected the header 'image,labels', got ''"),
        (b"image,labels\ncaf\xe9.jpg,cat\n", "expected UTF-8"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_label_rows(write(tmp_path / "labels.csv", text))


def saved(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


ONE_HOT = {"a": np.array([0.0, 1.0, 1.0]), "b": np.array([1.0, 0.0, 0.0])}


@pytest.mark.parametrize("apart", ["\n", " "])
def test_a_pickled_array_is_refused_with_the_lines_that_turn_it_into_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: str
) -> None:
    path = write(tmp_path / "cls_labels.npy", saved(np.array(ONE_HOT, dtype=object)))
    with pytest.raises(ValueError, match=r"got a pickled NumPy file, .* could run any program") as caught:
        read_labels(path, CLASSES)
    assert len(str(caught.value)) < 1000
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 3
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "names.txt", "bowl\ncat\ncup\n")
    exec(apart.join(lines), {})
    assert labels_in(tmp_path / "labels.csv") == {"a": ("cat", "cup"), "b": ("bowl",)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved(np.eye(3)), "got a NumPy array, which has no names of photos"),
        (pickle.dumps(ONE_HOT), "got a pickle, which is not read"),
        (b"PK\x03\x04...", "got a zip, as .xlsx and .npz files are"),
        (b"\xd0\xcf\x11\xe0...", "got a spreadsheet; save it as CSV"),
    ],
)
@pytest.mark.parametrize("name", ["labels.npy", "labels.csv", "labels.txt"])
def test_files_that_are_no_text_say_what_they_are(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_labels(write(tmp_path / name, content), CLASSES)


def coco(ids: Sequence[Any], **annotation: Any) -> str:
    """COCO's file of a.jpg with a cat, whose category has the middle id."""
    names = ("bowl", "cat", "cup")
    return json.dumps(
        {
            "images": [{"id": 0, "file_name": "a.jpg"}],
            "categories": [{"id": each, "name": name} for each, name in zip(ids, names, strict=True)],
            "annotations": [{"image_id": 0, "category_id": ids[1], **annotation}],
        }
    )


@pytest.mark.parametrize("ids", [(0, 1, 2), (7, 3, 1), (0, 300, 70000), (254, 255, 256), ("x", "y", "z"), (-1, -2, -3)])
def test_ids_of_categories_are_only_keys(tmp_path: Path, ids: Sequence[Any]) -> None:
    assert labels_in(write(tmp_path / "a.JSON", coco(ids))) == {"a.jpg": ("cat",)}


def test_categories_without_usable_ids_are_numbered(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", coco((0, 1, 2)))
    assert classes_of(path).names_by_index == {0: "background", 1: "bowl", 2: "cat", 3: "cup"}
    path = write(tmp_path / "a.json", coco((3, 2, 1)).replace("bowl", "cat"))  # one name, two ids
    assert classes_of(path).names_by_index == {0: "background", 1: "cat", 2: "cup"}
    assert labels_in(path) == {"a.jpg": ("cat",)}


@pytest.mark.parametrize(
    "annotation",
    [{}, {"bbox": [0, 0, 1, 1]}, {"segmentation": None}, {"segmentation": "x"}, {"id": 3, "segmentation": []}],
)
def test_image_level_labels_need_no_outlines(tmp_path: Path, annotation: dict[str, Any]) -> None:
    assert labels_in(write(tmp_path / "a.json", coco((1, 2, 3), **annotation))) == {"a.jpg": ("cat",)}


@pytest.mark.parametrize(
    ("width", "size"),
    [
        ("451.0", (30, 451)),
        (" 451 ", (30, 451)),
        ("4.51e2", (30, 451)),
        ("", None),
        ("wide", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_sizes_in_xml(tmp_path: Path, width: str, size: tuple[int, int] | None) -> None:
    path = write(tmp_path / "a.xml", XML.format(name="a.jpg").replace("40", width))
    assert read_annotation(path).size == size
    assert labels_in(tmp_path) == {"a.jpg": ("cat", "cup")}


def test_xml_in_any_letter_case_below_a_folder_without_hidden_files(tmp_path: Path) -> None:
    write(tmp_path / "one" / "a.XML", XML.format(name="a.jpg"))
    write(tmp_path / "two" / "b.Xml", "<annotation><filename> </filename></annotation>")
    write(tmp_path / "two" / "c.xml", "<annotation></annotation>")
    for hidden in ("._a.xml", ".git/a.xml", "__MACOSX/one/._a.xml"):
        write(tmp_path / hidden, "\0")
    assert labels_in(tmp_path) == {"a.jpg": ("cat", "cup"), "b": (), "c": ()}


def test_one_class_a_name(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.csv", "image,labels\na.jpg,Cat;tea_pot\nb.jpg,cat;Tea Pot;bowl\n")
    assert classes_of(path).names == ("Cat", "Tea Pot", "bowl")


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
