"""What is trained and published of the demo bundle, on a folder of empty files."""

from pathlib import Path

import pytest

from benchmarks import demo_bundle
from benchmarks.demo_bundle import Row, Score, as_markdown, as_metrics, frequent_classes, gather, write_config
from models.bundle.manifest import find_bundle, read_info
from models.config import load_config


def add(folder: Path, labels: dict[str, str]) -> None:
    (folder / "images").mkdir(parents=True)
    for name in labels:
        (folder / "images" / name).write_bytes(b"")
    rows = "".join(f"{name},{value}\n" for name, value in labels.items())
    (folder / "labels.csv").write_text("image,labels\n" + rows)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    add(tmp_path / "data/coco100", {"scene.jpg": "cat;dog", "empty.jpg": ""})
    dogs = {f"dog{number}.jpg": "dog" for number in range(4)}
    add(tmp_path / "data/photos/train", {**dogs, "both.jpg": "cat;dog", "cat.jpg": "cat"})
    return tmp_path / "data"


def test_rare_classes_are_gathered_first(data: Path, tmp_path: Path) -> None:
    assert gather(data, tmp_path / "out", per_class=2) == 4
    rows = (tmp_path / "out/labels.csv").read_text().splitlines()
    # Both photos of a cat, of which one is of a dog, too: one more dog is enough.
    assert sorted(rows[1:]) == ["both.jpg,cat;dog", "cat.jpg,cat", "dog0.jpg,dog", "scene.jpg,cat;dog"]
    links = {path.name: path.resolve() for path in (tmp_path / "out/images").iterdir()}
    assert links.keys() == {row.split(",")[0] for row in rows[1:]}
    assert links["scene.jpg"] == (data / "coco100/images/scene.jpg").resolve()


def test_two_photos_of_one_name_are_refused(data: Path, tmp_path: Path) -> None:
    add(tmp_path / "other", {})
    (data / "coco100/labels.csv").write_text("image,labels\ncat.jpg,cat\n")
    with pytest.raises(ValueError, match=r"expected photos of different names, got cat\.jpg twice"):
        gather(data, tmp_path / "out", per_class=2)


def test_frequent_classes_have_many_photos(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert frequent_classes(data) == set()
    monkeypatch.setattr(demo_bundle, "FREQUENT", 3)
    assert frequent_classes(data) == {"dog"}


def test_the_bundle_publishes_its_own_masks_only() -> None:
    stage = Row("stage (a)", "CAM", "coco100", Score(0.2, 0.3, 0.1, 0.25, 0.4))
    whole = Row("stage (c) and segmenter", "pseudo mask", "photos/val", Score(0.3, 0.4, 0.2, 0.35, 0.5))
    alone = Row("segmenter", "no labels given", "photos/val", Score(0.15, 0.25, 0.05))
    metrics = as_metrics([stage, whole, alone])
    assert [(each["value"], each["rule"]) for each in metrics] == [
        (0.3, "fixed"), (0.2, "fixed"), (0.35, "oracle"), (0.15, "fixed"), (0.05, "fixed"),
    ]  # fmt: skip
    assert as_markdown([whole, alone]).splitlines()[2:] == [
        "| stage (c) and segmenter | pseudo mask | photos/val | 30.0 | 35.0 (0.5) | 40.0 | 20.0 |",
        "| segmenter | no labels given | photos/val | 15.0 | – | 25.0 | 5.0 |",
    ]


def test_the_shipped_bundle_has_the_configured_settings(tmp_path: Path) -> None:
    config = load_config(str(write_config("coco-demo", tmp_path / "config.yaml", clip=None, seed=0)))
    info = read_info(find_bundle("coco-demo"))
    assert info.inference == config.inference
    assert info.segment == config.segment
