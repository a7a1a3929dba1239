from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.data.classes import ClassInfo, ClassList
from models.evaluation.metrics import (
    evaluate_label_maps,
    matching_files,
    report_to_json,
    sweep_scores,
)
from models.inference.masks import MaskOptions, SoftMaps, decide

CLASSES = ClassList((ClassInfo(3, "bowl"), ClassInfo(4, "cat")))
THRESHOLDS = [0.2, 0.5, 0.8]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two images with random scores of both classes and random ground truth."""
    random = np.random.default_rng(0)
    for name in ("truth", "scores", *map(str, THRESHOLDS)):
        (tmp_path / name).mkdir()
    for stem in ("a", "b"):
        truth = random.choice(np.array([0, 3, 4, 255], dtype=np.uint8), (40, 50))
        Image.fromarray(truth).save(tmp_path / "truth" / f"{stem}.png")
        scores = random.random((2, 9, 7)).astype(np.float16)
        np.savez(
            tmp_path / "scores" / f"{stem}.npz",
            scores=scores,
            class_index=np.array([3, 4]),
            class_name=np.array(["bowl", "cat"]),
            image_size=np.array([40, 50]),
        )
        maps = SoftMaps(scores, np.array([3, 4]), ("bowl", "cat"), (40, 50))
        for threshold in THRESHOLDS:
            decision = decide(maps, MaskOptions("none", 0, background_threshold=threshold))
            picture = Image.fromarray(decision.label_map)
            picture.save(tmp_path / str(threshold) / f"{stem}.png")
    return tmp_path


def test_the_sweep_is_what_each_threshold_gives(folders: Path) -> None:
    done: list[int] = []
    sweep = sweep_scores(
        matching_files(folders / "scores", folders / "truth", ".npz"),
        CLASSES,
        thresholds=THRESHOLDS,
        min_pixels=0,
        on_image=lambda: done.append(1),
    )
    assert len(done) == 2
    for threshold, report in zip(THRESHOLDS, sweep.reports, strict=True):
        pairs = matching_files(folders / str(threshold), folders / "truth", ".png")
        single = evaluate_label_maps(pairs, CLASSES, min_pixels=0, on_image=lambda: None)
        torch.testing.assert_close(report.iou, single.iou, equal_nan=True, rtol=0, atol=0)
        assert report.mean_iou == single.mean_iou
    best, report = sweep.best
    assert report.mean_iou == max(each.mean_iou for each in sweep.reports)
    assert best in THRESHOLDS


def test_json_has_names_and_no_nan(folders: Path) -> None:
    more = ClassList((*CLASSES.classes, ClassInfo(9, "dog")))
    pairs = matching_files(folders / "0.5", folders / "truth", ".png")
    report = evaluate_label_maps(pairs, more, min_pixels=0, on_image=lambda: None)
    result = report_to_json(report, more, images=len(pairs))
    assert [each["name"] for each in result["classes"]] == ["background", "bowl", "cat", "dog"]
    assert result["classes"][3]["iou"] is None
    known = [each["iou"] for each in result["classes"][:3]]
    assert result["mean_iou"] == pytest.approx(sum(known) / 3)
    assert result["images"] == 2


def test_files_must_match(folders: Path) -> None:
    with pytest.raises(ValueError, match=r"expected \*.npz files in .*truth, got none"):
        matching_files(folders / "truth", folders / "truth", ".npz")
    (folders / "truth" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"expected b.png in .*\(1 missing\)"):
        matching_files(folders / "scores", folders / "truth", ".npz")
    some = matching_files(folders / "scores", folders / "truth", ".npz", allow_missing=True)
    assert [truth.name for _, truth in some] == ["a.png"]
    (folders / "truth" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"expected a.png in .*\(2 missing\)"):
        matching_files(folders / "scores", folders / "truth", ".npz", allow_missing=True)


def test_wrong_files_are_named(folders: Path) -> None:
    def run() -> None:
        pairs = matching_files(folders / "0.5", folders / "truth", ".png")
        evaluate_label_maps(pairs, CLASSES, min_pixels=0, on_image=lambda: None)

    Image.new("L", (5, 5)).save(folders / "0.5" / "b.png")
    with pytest.raises(ValueError, match=r"0.5/b.png and .*truth/b.png: expected a prediction"):
        run()
    Image.new("RGB", (50, 40)).save(folders / "0.5" / "b.png")
    with pytest.raises(ValueError, match=r"mode L or P in .*b.png, got RGB"):
        run()
    (folders / "0.5" / "b.png").write_text("no")
    with pytest.raises(ValueError, match=r"expected a label map in .*b.png"):
        run()
