import json
from pathlib import Path

import pytest

from models.evaluation.report import masks_part, options_in_words, outcome_in_words

OPTIONS = {
    "refine": "pamr", "min_confidence": 0.0, "background_threshold": 0.4, "background_power": None,
    "class_thresholds": {},
}  # fmt: skip
CAT = {
    "images": 3, "mean_area": 0.1, "mean_confidence": 0.5, "mean_alignment_class": None,
    "mean_alignment_background": None, "empty": ["a.jpg", "b.jpg"],
}  # fmt: skip
SUMMARY = {
    "options": OPTIONS, "masks": 3, "unlabeled": 1, "classes": {"cat": CAT},
    "failed": [{"image": "c.jpg", "reason": "cannot read"}],
}  # fmt: skip


def test_a_summary(tmp_path: Path) -> None:
    assert masks_part(tmp_path) is None
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    part = masks_part(tmp_path)
    assert part is not None
    assert (part.made, part.unlabeled, part.failed) == (3, 1, (("c.jpg", "cannot read"),))
    assert part.empty == 2
    [row] = part.rows
    assert (row.name, row.photos, row.area, row.to_class) == ("cat", 3, 0.1, None)


@pytest.mark.parametrize(
    ("classes", "failed", "words"),
    [
        ({"cat": CAT}, [], "2 empty of 3 labels (cat 2 of 3)"),
        ({"cat": {**CAT, "empty": []}}, [], "0 empty of 3 labels"),
        (
            {"bowl": {**CAT, "empty": ["c.jpg"]}, "cat": CAT},
            SUMMARY["failed"],
            "3 empty of 6 labels (cat 2 of 3, bowl 1 of 3); photos that failed: 1",
        ),
    ],
)
def test_outcome_in_words(tmp_path: Path, classes: object, failed: object, words: str) -> None:
    content = {**SUMMARY, "classes": classes, "failed": failed}
    (tmp_path / "summary.json").write_text(json.dumps(content))
    part = masks_part(tmp_path)
    assert part is not None
    assert outcome_in_words(part) == words


@pytest.mark.parametrize("key", ["options", "masks", "classes", "failed"])
def test_another_json_is_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({**SUMMARY, key: None}))
    if key == "masks":
        (tmp_path / "summary.json").write_text(json.dumps({"images": 3}))
    with pytest.raises(ValueError, match="expected a summary of make-pseudo-masks in"):
        masks_part(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "refined by pamr, background threshold 0.4"),
        ({"refine": "none"}, "not refined, background threshold 0.4"),
        (
            {"background_power": 2, "background_threshold": None},
            "refined by pamr, background power 2",
        ),
        (
            {"class_thresholds": {"cat": 0.3}, "min_confidence": 0.2},
            "refined by pamr, background threshold 0.4, thresholds of their own for 1 classes, "
            "least confidence 0.2",
        ),
    ],
)
def test_options_in_words(change: dict[str, object], words: str) -> None:
    assert options_in_words({**OPTIONS, **change}) == words
