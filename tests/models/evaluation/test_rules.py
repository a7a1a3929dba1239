import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.cli import main
from models.data.classes import ClassInfo, ClassList, write_class_list
from models.evaluation.metrics import (
    THRESHOLDS,
    curve_csv,
    evaluate_label_maps,
    find_files,
    matching_files,
    measure,
    measured_to_json,
)
from models.inference.masks import MaskOptions, SoftMaps, decide

CLASSES = ClassList((ClassInfo(3, "bowl"), ClassInfo(4, "cat")))
KEYS = {"images", "mean_iou", "classes", "rule", "missing_predictions", "missing_ground_truths"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos with random ground truth and scores, and masks of these at 0.4."""
    random = np.random.default_rng(0)
    for name in ("truth", "scores", "masks"):
        (tmp_path / name).mkdir()
    for stem in ("a", "b", "c"):
        truth = random.choice(np.array([0, 3, 4, 255], dtype=np.uint8), (40, 50))
        scores = random.random((2, 9, 7)).astype(np.float16)
        maps = SoftMaps(scores, np.array([3, 4]), ("bowl", "cat"), (40, 50))
        decision = decide(maps, MaskOptions("none", 0, background_threshold=0.4))
        Image.fromarray(truth).save(tmp_path / "truth" / f"{stem}.png")
        Image.fromarray(decision.label_map).save(tmp_path / "masks" / f"{stem}.png")
        np.savez(
            tmp_path / "scores" / f"{stem}.npz",
            scores=scores,
            class_index=maps.indices,
            class_name=np.array(maps.names),
            image_size=np.array(maps.size),
        )
    return tmp_path


def test_both_rules_in_one_call(folder: Path) -> None:
    files = find_files(
        folder / "truth", masks=folder / "masks", scores=folder / "scores", allow_missing=False
    )
    assert (len(files.masks), len(files.scores), files.unpaired, files.missing) == (3, 3, 0, 0)
    done: list[int] = []
    measured = measure(files, CLASSES, on_image=lambda: done.append(1))
    assert len(done) == 6
    assert measured.fixed is not None
    assert measured.oracle is not None
    pairs = matching_files(folder / "masks", folder / "truth", ".png")
    alone = evaluate_label_maps(pairs, CLASSES, min_pixels=0, on_image=lambda: None)
    torch.testing.assert_close(measured.fixed.iou, alone.iou, rtol=0, atol=0, equal_nan=True)
    at_theirs = measured.oracle.reports[THRESHOLDS.index(0.4)]
    assert at_theirs.mean_iou == measured.fixed.mean_iou
    assert measured.oracle.best[1].mean_iou >= measured.fixed.mean_iou

    found = measured_to_json(measured, CLASSES, files)
    assert set(found) == KEYS | {"oracle"}
    assert found["rule"] == "fixed"
    assert found["mean_iou"] == measured.fixed.mean_iou
    oracle = found["oracle"]
    assert (oracle["rule"], oracle["threshold"]) == ("oracle", measured.oracle.best[0])
    assert oracle["curve"]["0.4"] == found["mean_iou"]


def test_one_rule_alone_keeps_its_keys_on_top(folder: Path) -> None:
    fixed = find_files(folder / "truth", masks=folder / "masks", scores=None)
    assert set(measured_to_json(measure(fixed, CLASSES), CLASSES, fixed)) == KEYS
    oracle = find_files(folder / "truth", masks=None, scores=folder / "scores")
    found = measured_to_json(measure(oracle, CLASSES), CLASSES, oracle)
    assert set(found) == KEYS | {"threshold", "curve"}
    assert found["rule"] == "oracle"
    assert found["mean_iou"] == max(found["curve"].values())


def test_the_curve_as_csv(folder: Path) -> None:
    files = find_files(folder / "truth", masks=None, scores=folder / "scores")
    sweep = measure(files, CLASSES).oracle
    assert sweep is not None
    header, *rows = curve_csv(sweep).splitlines()
    assert header == "threshold,mean_iou"
    assert [float(row.split(",")[0]) for row in rows] == list(THRESHOLDS)
    assert max(float(row.split(",")[1]) for row in rows) == sweep.best[1].mean_iou


def test_rules_compare_the_same_photos(folder: Path) -> None:
    (folder / "masks" / "a.png").unlink()
    (folder / "scores" / "b.npz").unlink()
    files = find_files(folder / "truth", masks=folder / "masks", scores=folder / "scores")
    assert [[path.stem for path, _ in side] for side in (files.masks, files.scores)] == [["c"]] * 2
    assert (files.unpaired, files.missing) == (2, 2)
    (folder / "masks" / "c.png").unlink()
    with pytest.raises(ValueError, match="expected masks and scores of the same photos"):
        find_files(folder / "truth", masks=folder / "masks", scores=folder / "scores")
    with pytest.raises(ValueError, match="label maps or of scores, got neither"):
        find_files(folder / "truth", masks=None, scores=None)


def test_nothing_to_count_is_null_and_no_nan(folder: Path) -> None:
    for path in (folder / "truth").iterdir():
        Image.new("L", (50, 40), 255).save(path)
    files = find_files(folder / "truth", masks=folder / "masks", scores=folder / "scores")
    measured = measure(files, CLASSES)
    found = json.loads(json.dumps(measured_to_json(measured, CLASSES, files), allow_nan=False))
    assert found["mean_iou"] is None
    assert set(found["oracle"]["curve"].values()) == {None}
    assert measured.oracle is not None
    assert curve_csv(measured.oracle).splitlines()[1] == "0.05,"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["semples", "evaluate", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture
def truth(folder: Path) -> list[object]:
    write_class_list(folder / "classes.txt", CLASSES)
    return ["--ground-truth", folder / "truth", "--classes", folder / "classes.txt"]


def test_both_are_printed_by_name(
    folder: Path,
    truth: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = ["--predictions", folder / "masks", "--scores", folder / "scores", *truth]
    assert run(monkeypatch, *both, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert run(monkeypatch, *both, "--curve", folder / "new" / "curve.csv") == 0
    printed = capsys.readouterr().out
    assert f"mean IoU, fixed: {100 * found['mean_iou']:.2f} % (masks as they are" in printed
    oracle = found["oracle"]
    assert f"mean IoU, oracle: {100 * oracle['mean_iou']:.2f} % (last epoch, at " in printed
    assert f"at {oracle['threshold']}: the best threshold for this ground truth" in printed
    assert "IoU %, fixed" in printed
    assert "IoU %, oracle" in printed
    rows = (folder / "new" / "curve.csv").read_text().splitlines()[1:]
    assert [float(row.split(",")[1]) for row in rows] == list(oracle["curve"].values())


def test_left_out_photos_are_told(
    folder: Path,
    truth: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "scores" / "b.npz").unlink()
    both = ["--predictions", folder / "masks", "--scores", folder / "scores", *truth]
    assert run(monkeypatch, *both) == 0
    told = capsys.readouterr()
    assert "1 photos left out: only one of mask and scores is there" in told.err
    assert "1 ground truths have no prediction" in told.err
    assert "2 images" in told.out


def test_mistakes_are_one_line(
    folder: Path,
    truth: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *truth) == 2
    assert "expected --predictions and --scores, or one of them" in capsys.readouterr().err
    masks = ["--predictions", folder / "masks"]
    assert run(monkeypatch, *truth, *masks, "--curve", folder / "curve.csv") == 2
    assert "expected --scores beside --curve, got none" in capsys.readouterr().err
    assert not (folder / "curve.csv").exists()
