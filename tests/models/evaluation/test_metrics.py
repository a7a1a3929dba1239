import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.data.classes import ClassInfo, ClassList, write_class_list
from models.evaluation import metrics
from models.inference.masks import MaskOptions, SoftMaps, decide
from tests.helpers.command import semples, semples_ok, semples_refuses


def test_by_hand() -> None:
    truth = torch.tensor([[0, 0, 1, 1], [2, 2, 255, 1]])
    guess = torch.tensor([[0, 1, 1, 255], [2, 0, 1, 1]])
    matrix = metrics.confusion_matrix(truth, guess, indices=4)
    report = metrics.iou_report(matrix)
    # background: 1 of {2 true, 2 guessed}; 1: 2 of {3, 3}, an ignored pixel is missed; 2: 1 of {2, 1}
    expected = [1 / 3, 2 / 4, 1 / 2]
    assert report.iou[:3].tolist() == pytest.approx(expected)
    assert math.isnan(report.iou[3])
    assert report.pixels.tolist() == [2, 3, 2, 0]
    assert report.mean_iou == pytest.approx(sum(expected) / 3)
    assert metrics.iou_report(matrix, min_pixels=3).mean_iou == pytest.approx(0.5)


def test_a_class_only_predicted_counts_as_zero() -> None:
    report = metrics.iou_report(metrics.confusion_matrix(torch.tensor([0, 0]), torch.tensor([0, 1]), indices=2))
    assert report.iou.tolist() == [0.5, 0]


def test_sums_over_images() -> None:
    truth, guess = torch.randint(0, 3, (2, 8, 8)), torch.randint(0, 3, (2, 8, 8))
    both = sum(metrics.confusion_matrix(truth[each], guess[each], indices=3) for each in range(2))
    assert torch.equal(both, metrics.confusion_matrix(truth, guess, indices=3))
    assert metrics.iou_report(metrics.confusion_matrix(truth, truth, indices=3)).mean_iou == 1


def test_everything_ignored_is_nan() -> None:
    matrix = metrics.confusion_matrix(torch.full((2, 2), 255), torch.zeros(2, 2), indices=2)
    assert math.isnan(metrics.iou_report(matrix).mean_iou)


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match=r"size \(2, 2\), got \(2, 3\)"):
        metrics.confusion_matrix(torch.zeros(2, 2), torch.zeros(2, 3), indices=2)
    with pytest.raises(ValueError, match="expected ground truth below 2, got 7"):
        metrics.confusion_matrix(torch.tensor([7]), torch.tensor([0]), indices=2)


CLASSES = ClassList((ClassInfo(3, "bowl"), ClassInfo(4, "cat")))
SOME = [0.2, 0.5, 0.8]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos with random ground truth and scores, and masks of these at 0.4 and some other thresholds."""
    random = np.random.default_rng(0)
    thresholds = {"masks": 0.4} | {str(threshold): threshold for threshold in SOME}
    for name in ("truth", "scores", *thresholds):
        (tmp_path / name).mkdir()
    for stem in ("a", "b", "c"):
        truth = random.choice(np.array([0, 3, 4, 255], dtype=np.uint8), (40, 50))
        Image.fromarray(truth).save(tmp_path / "truth" / f"{stem}.png")
        scores = random.random((2, 9, 7)).astype(np.float16)
        maps = SoftMaps(scores, np.array([3, 4]), ("bowl", "cat"), (40, 50))
        for name, threshold in thresholds.items():
            decision = decide(maps, MaskOptions("none", 0, background_threshold=threshold))
            Image.fromarray(decision.label_map).save(tmp_path / name / f"{stem}.png")
        np.savez(
            tmp_path / "scores" / f"{stem}.npz",
            scores=scores,
            class_index=maps.indices,
            class_name=np.array(maps.names),
            image_size=np.array(maps.size),
        )
    return tmp_path


def test_the_sweep_is_what_each_threshold_gives(folder: Path) -> None:
    done: list[int] = []
    sweep = metrics._sweep_scores(
        metrics._matching_files(folder / "scores", folder / "truth", ".npz"),
        CLASSES,
        thresholds=SOME,
        on_image=lambda: done.append(1),
    )
    assert len(done) == 3
    for threshold, report in zip(SOME, sweep.reports, strict=True):
        pairs = metrics._matching_files(folder / str(threshold), folder / "truth", ".png")
        single = metrics._evaluate_label_maps(pairs, CLASSES)
        torch.testing.assert_close(report.iou, single.iou, equal_nan=True, rtol=0, atol=0)
        assert report.mean_iou == single.mean_iou
    best, report = sweep.best
    assert report.mean_iou == max(each.mean_iou for each in sweep.reports)
    assert best in SOME


def test_json_has_names_and_no_nan(folder: Path) -> None:
    more = ClassList((*CLASSES.classes, ClassInfo(9, "dog")))
    pairs = metrics._matching_files(folder / "0.5", folder / "truth", ".png")
    report = metrics._evaluate_label_maps(pairs, more)
    result = metrics._report_to_json(report, more, images=len(pairs))
    assert [each["name"] for each in result["classes"]] == ["background", "bowl", "cat", "dog"]
    assert result["classes"][3]["iou"] is None
    known = [each["iou"] for each in result["classes"][:3]]
    assert result["mean_iou"] == pytest.approx(sum(known) / 3)
    assert result["images"] == 3


def test_files_must_match(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"expected \*.npz files in .*truth, got none"):
        metrics._matching_files(folder / "truth", folder / "truth", ".npz")
    (folder / "truth" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"expected b.png in .*\(1 missing\)"):
        metrics._matching_files(folder / "scores", folder / "truth", ".npz")
    for place in ("truth/._a.png", "scores/._a.npz"):  # of macOS
        (folder / place).touch()
    some = metrics._matching_files(folder / "scores", folder / "truth", ".npz", allow_missing=True)
    assert [truth.name for _, truth in some] == ["a.png", "c.png"]
    for name in ("a.png", "c.png"):
        (folder / "truth" / name).unlink()
    with pytest.raises(ValueError, match=r"expected a.png in .*\(3 missing\)"):
        metrics._matching_files(folder / "scores", folder / "truth", ".npz", allow_missing=True)


def test_wrong_files_are_named(folder: Path) -> None:
    def run() -> None:
        pairs = metrics._matching_files(folder / "0.5", folder / "truth", ".png")
        metrics._evaluate_label_maps(pairs, CLASSES)

    Image.new("L", (5, 5)).save(folder / "0.5" / "b.png")
    with pytest.raises(ValueError, match=r"0.5/b.png and .*truth/b.png: expected a prediction"):
        run()
    Image.new("RGB", (50, 40)).save(folder / "0.5" / "b.png")
    with pytest.raises(ValueError, match=r"mode L or P in .*b.png, got RGB"):
        run()
    (folder / "0.5" / "b.png").write_text("no")
    with pytest.raises(ValueError, match=r"expected a label map in .*b.png"):
        run()


KEYS = {"images", "mean_iou", "classes", "rule", "missing_predictions", "missing_ground_truths"}


def test_both_rules_in_one_call(folder: Path) -> None:
    files = metrics.find_files(folder / "truth", masks=folder / "masks", scores=folder / "scores")
    assert (len(files.masks), len(files.scores), files.unpaired, files.missing) == (3, 3, 0, 0)
    done: list[int] = []
    measured = metrics.measure(files, CLASSES, on_image=lambda: done.append(1))
    assert len(done) == 6
    assert measured.fixed is not None
    assert measured.oracle is not None
    pairs = metrics._matching_files(folder / "masks", folder / "truth", ".png")
    alone = metrics._evaluate_label_maps(pairs, CLASSES)
    torch.testing.assert_close(measured.fixed.iou, alone.iou, rtol=0, atol=0, equal_nan=True)
    at_theirs = measured.oracle.reports[metrics.THRESHOLDS.index(0.4)]
    assert at_theirs.mean_iou == measured.fixed.mean_iou
    assert measured.oracle.best[1].mean_iou >= measured.fixed.mean_iou

    found = metrics.measured_to_json(measured, CLASSES, files)
    assert set(found) == KEYS | {"oracle"}
    assert found["rule"] == "fixed"
    assert found["mean_iou"] == measured.fixed.mean_iou
    oracle = found["oracle"]
    assert (oracle["rule"], oracle["threshold"]) == ("oracle", measured.oracle.best[0])
    assert oracle["curve"]["0.4"] == found["mean_iou"]


def test_one_rule_alone_keeps_its_keys_on_top(folder: Path) -> None:
    fixed = metrics.find_files(folder / "truth", masks=folder / "masks", scores=None)
    assert set(metrics.measured_to_json(metrics.measure(fixed, CLASSES), CLASSES, fixed)) == KEYS
    oracle = metrics.find_files(folder / "truth", masks=None, scores=folder / "scores")
    found = metrics.measured_to_json(metrics.measure(oracle, CLASSES), CLASSES, oracle)
    assert set(found) == KEYS | {"threshold", "curve"}
    assert found["rule"] == "oracle"
    assert found["mean_iou"] == max(found["curve"].values())


def test_the_curve_as_csv(folder: Path) -> None:
    files = metrics.find_files(folder / "truth", masks=None, scores=folder / "scores")
    sweep = metrics.measure(files, CLASSES).oracle
    assert sweep is not None
    header, *rows = metrics.curve_csv(sweep).splitlines()
    assert header == "threshold,mean_iou"
    assert [float(row.split(",")[0]) for row in rows] == list(metrics.THRESHOLDS)
    assert max(float(row.split(",")[1]) for row in rows) == sweep.best[1].mean_iou


def test_rules_compare_the_same_photos(folder: Path) -> None:
    (folder / "masks" / "a.png").unlink()
    (folder / "scores" / "b.npz").unlink()
    files = metrics.find_files(folder / "truth", masks=folder / "masks", scores=folder / "scores")
    assert [[path.stem for path, _ in side] for side in (files.masks, files.scores)] == [["c"]] * 2
    assert (files.unpaired, files.missing) == (2, 2)
    (folder / "masks" / "c.png").unlink()
    with pytest.raises(ValueError, match="expected masks and scores of the same photos"):
        metrics.find_files(folder / "truth", masks=folder / "masks", scores=folder / "scores")
    with pytest.raises(ValueError, match="label maps or of scores, got neither"):
        metrics.find_files(folder / "truth", masks=None, scores=None)


def test_nothing_to_count_is_null_and_no_nan(folder: Path) -> None:
    files = metrics.find_files(folder / "truth", masks=folder / "masks", scores=folder / "scores")
    measured = metrics.measure(files, CLASSES, min_pixels=10**9)
    found = json.loads(json.dumps(metrics.measured_to_json(measured, CLASSES, files), allow_nan=False))
    assert found["mean_iou"] is None
    assert set(found["oracle"]["curve"].values()) == {None}
    assert measured.oracle is not None
    assert metrics.curve_csv(measured.oracle).splitlines()[1] == "0.05,"


@pytest.fixture
def truth(folder: Path) -> list[object]:
    write_class_list(folder / "classes.txt", CLASSES)
    return ["--ground-truth", folder / "truth", "--classes", folder / "classes.txt"]


def test_both_are_printed_by_name(folder: Path, truth: list[object]) -> None:
    both = ["--predictions", folder / "masks", "--scores", folder / "scores", *truth]
    found = json.loads(semples_ok("evaluate", *both, "--json"))
    printed = semples_ok("evaluate", *both, "--curve", folder / "new" / "curve.csv")
    assert f"mean IoU, fixed: {100 * found['mean_iou']:.2f} % (masks as they are" in printed
    oracle = found["oracle"]
    assert f"mean IoU, oracle: {100 * oracle['mean_iou']:.2f} % (last epoch, at " in printed
    assert f"at {oracle['threshold']}: the best threshold for this ground truth" in printed
    assert "IoU %, fixed" in printed
    assert "IoU %, oracle" in printed
    rows = (folder / "new" / "curve.csv").read_text().splitlines()[1:]
    assert [float(row.split(",")[1]) for row in rows] == list(oracle["curve"].values())


def test_left_out_photos_are_reported(folder: Path, truth: list[object]) -> None:
    (folder / "scores" / "b.npz").unlink()
    both = ["--predictions", folder / "masks", "--scores", folder / "scores", *truth]
    done = semples("evaluate", *both)
    assert done.returncode == 0
    assert "1 photos left out: only one of mask and scores is there" in done.stderr
    assert "1 ground truths have no prediction" in done.stderr
    assert "2 images" in done.stdout


def test_wrong_options_are_refused(folder: Path, truth: list[object]) -> None:
    neither = semples_refuses("evaluate", *truth)
    assert "expected --predictions and --scores, or one of them" in neither
    more = ["--predictions", folder / "masks", "--curve", folder / "curve.csv"]
    assert "expected --scores beside --curve, got none" in semples_refuses("evaluate", *truth, *more)
    assert not (folder / "curve.csv").exists()
