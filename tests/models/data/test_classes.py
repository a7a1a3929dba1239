from pathlib import Path

import pytest

from models.data.classes import (
    ClassInfo,
    ClassList,
    UnknownLabelError,
    _open_name,
    read_class_list,
    why_closed,
    with_open_labels,
    write_class_list,
)
from models.data.labels import classes_with_open_labels, read_folder
from tests.conftest import CLASSES

KNOWN = CLASSES.with_synonyms({"cup": ["mug"]})


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Fire-Truck", "fire truck"),
        ("  tea\u00a0 pot_lid ", "tea pot lid"),
        ("café au lait", "café au lait"),
        ("зебра", "зебра"),
        ("m&m's (red) 2.0/3", "m&m's (red) 2.0/3"),
        ("x" * 64, "x" * 64),
    ],
)
def test_names_are_labels_as_classes_are_compared(label: str, name: str) -> None:
    assert _open_name(label) == _open_name(name) == name


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["", " -_ ", "x" * 65, "é" * 33, "İ" * 30], "expected a label of 1 to 64 bytes, got"),
        (
            ["a\x00b", "a;b", "<b>", "a:b", "&'.", "🦊", "a\ud800", "a\u200bb"],
            r"expected a label of letters, digits, spaces and & ' \(",
        ),
        (["Background", "ignored"], "expected no label to be called"),
    ],
)
def test_what_is_no_label(labels: list[str], message: str) -> None:
    for label in labels:
        with pytest.raises(ValueError, match=message):
            _open_name(label)


def test_open_classes_come_after_the_known_ones() -> None:
    opened = with_open_labels(KNOWN, ["Zebra", "mug", "fire_truck", "CAT", "zebra"])
    assert opened.classes[:4] == KNOWN.classes
    assert opened.classes[4:] == (ClassInfo(10, "fire truck"), ClassInfo(11, "zebra"))
    assert opened == with_open_labels(KNOWN, ["fire truck", "zebra"])
    resolved = opened.resolve(["zebra", "mug", "Fire Truck"])
    assert [each.name for each in resolved] == ["cup", "fire truck", "zebra"]
    with pytest.raises(UnknownLabelError):
        opened.resolve(["dog"])


def test_known_labels_open_nothing() -> None:
    assert with_open_labels(KNOWN, ["Mug", "dining_table"]) is KNOWN


def test_indices_never_meet_others() -> None:
    high = ClassList((ClassInfo(3, "a"), ClassInfo(253, "b")))
    names = [f"label {number:03}" for number in range(252)]
    opened = with_open_labels(high, names)
    assert [each.index for each in opened.classes[2:]] == [254, 1, 2, *range(4, 253)]
    with pytest.raises(ValueError, match="expected at most 252 labels beside the 2 classes, got 253"):
        with_open_labels(high, [*names, "one more"])


def test_why_a_bundle_takes_none() -> None:
    assert "weaktr" in why_closed("weaktr")
    assert "no text tower" in why_closed("zero_shot")


def test_labels_of_a_folder(tmp_path: Path, tiny_data: Path) -> None:
    rows = tmp_path / "labels.csv"
    rows.write_text("image,labels\nphoto0.jpg,zebra;cat\nphoto1.jpg,fire-truck;mug\n")
    classes = classes_with_open_labels(rows, KNOWN)
    assert classes.names[4:] == ("fire truck", "zebra")
    samples = read_folder(tiny_data / "images", rows, classes)
    assert [sample.channels for sample in samples] == [(1, 5), (2, 4)]
    rows.write_text("image,labels\nphoto0.jpg,a:b\n")
    with pytest.raises(ValueError, match=r"labels.csv: expected a label of letters.* got 'a:b'"):
        classes_with_open_labels(rows, KNOWN)


def test_labels_resolve_to_unique_classes_in_channel_order() -> None:
    found = KNOWN.resolve(["MUG", "cat", "Cup", "dining_table", " cat "])
    assert [each.name for each in found] == ["cat", "cup", "dining table"]


ODD = ClassList(
    tuple(
        ClassInfo(index, name)
        for index, name in enumerate(
            ("dining table", "bus", "wine glass", "skis", "cherry", "tv", "hot dog", "hotdog stand", "t shirt", "axe"),
            1,
        )
    )
)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("DINING_TABLE", "dining table"),
        ("diningtable", "dining table"),
        ("Dining-Tables", "dining table"),
        ("diningTables", "dining table"),
        ("buses", "bus"),
        ("Wine Glasses", "wine glass"),
        ("wineglass", "wine glass"),
        ("ski", "skis"),
        ("cherries", "cherry"),
        ("TVs", "tv"),
        ("T-Shirts", "t shirt"),
        ("hotdogs", "hot dog"),
        ("axes", "axe"),
    ],
)
def test_class_names_by_simple_normalization(label: str, name: str) -> None:
    assert [each.name for each in ODD.resolve([label])] == [name]


@pytest.mark.parametrize("label", ["b", "bu", "glass", "cherr", "table", "s", "dogs", "hot  stand"])
def test_other_words_are_no_class(label: str) -> None:
    assert not ODD.knows(label)


def test_a_label_that_fits_two_classes_is_refused() -> None:
    two = ClassList((ClassInfo(1, "tea pot"), ClassInfo(2, "tea pots"), ClassInfo(3, "cafe\u0301")))
    assert [each.name for each in two.resolve(["tea_pots"])] == ["tea pots"]
    with pytest.raises(UnknownLabelError, match="nearest known: tea pots, tea pot"):
        two.resolve(["teapots"])
    assert two.knows("CAF\u00c9")  # composed or not


def test_unknown_labels_come_with_the_nearest() -> None:
    with pytest.raises(UnknownLabelError, match="got 'catt'; nearest known: cat") as caught:
        KNOWN.resolve(["bowl", "catt"])
    assert caught.value.label == "catt"
    assert caught.value.nearest[0] == "cat"
    with pytest.raises(UnknownLabelError) as far:
        KNOWN.resolve(["zzzz" * 100_000])
    assert far.value.nearest == ()


def test_the_number_of_labels_is_bounded() -> None:
    with pytest.raises(ValueError, match="expected at least one label, got none"):
        KNOWN.resolve([])
    with pytest.raises(ValueError, match="expected at most 32 labels, got 10000"):
        KNOWN.resolve(["cat"] * 10_000)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((), "expected at least one class"),
        ((ClassInfo(0, "a"),), "from 1 to 254, got 0"),
        ((ClassInfo(255, "a"),), "from 1 to 254, got 255"),
        ((ClassInfo(1, "a"), ClassInfo(1, "b")), "distinct class indices"),
        ((ClassInfo(1, "a"), ClassInfo(2, "b", ("A",))), "distinct class names"),
    ],
)
def test_bad_class_lists(classes: tuple[ClassInfo, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassList(classes)


def test_synonyms_must_be_free() -> None:
    assert CLASSES.classes[2].synonyms == ()
    with pytest.raises(ValueError, match="distinct class names and synonyms"):
        KNOWN.with_synonyms({"bowl": ["Cat"]})
    with pytest.raises(UnknownLabelError, match="got 'mugg'"):
        KNOWN.with_synonyms({"mugg": ["x"]})


def test_class_files(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    write_class_list(path, KNOWN)
    assert path.read_text().splitlines()[:2] == ["0 background", "3 bowl"]
    assert read_class_list(path).names == KNOWN.names
    path.write_text("1 bowl\ncat\n")
    with pytest.raises(ValueError, match=r"classes.txt:2: expected 'index name', got 'cat'"):
        read_class_list(path)
