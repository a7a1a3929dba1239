"""README repeats a few figures of the results page; both repeat the demo bundle's own."""

import re
from pathlib import Path

import pytest

from models.bundle.manifest import find_bundle, read_info

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs/results.md").read_text(encoding="utf-8")


def published(data: str, masks: str, classes: str) -> str:
    """Return a fixed mean IoU of the demo bundle, in percent."""
    name = f"mean IoU, {masks}, {classes}"
    found = [
        metric.value
        for metric in read_info(find_bundle("coco-demo")).metrics
        if metric.name.startswith(name) and data in metric.data and metric.rule == "fixed"
    ]
    assert len(found) == 1
    return f"{100 * found[0]:.1f}"


def cells(page: str, *first: str) -> list[str]:
    """Return the cells of the table's row that begins with these."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    (found,) = [row for row in rows if len(row) > len(first) and all(map(str.startswith, row, first))]
    return found


@pytest.mark.parametrize(("data", "in_readme"), [("coco100", "98 of `coco100`"), ("photos/val", "96 of `photos/val`")])
def test_the_bundles_figures(data: str, in_readme: str) -> None:
    masks, alone = published(data, "pseudo mask", "classes with"), published(data, "segmenter", "classes with")
    assert cells(README, in_readme)[1:] == [masks, alone]
    row = cells(RESULTS, "stage (c) and segmenter", "pseudo mask", data)
    assert (row[3], row[-1]) == (masks, published(data, "pseudo mask", "all classes"))
    row = cells(RESULTS, "segmenter", "no labels given", data)
    assert (row[3], row[-1]) == (alone, published(data, "segmenter", "all classes"))


def test_the_segmenters_classes_are_counted() -> None:
    info = read_info(find_bundle("coco-demo"))
    known = len(info.classes) - len(info.untaught)
    assert f"knows {known} of the {len(info.classes)} classes" in README
    assert f"knows the {known} classes" in RESULTS


def test_readmes_spreads_are_those_of_the_results() -> None:
    spreads = re.findall(r"\d+\.\d ± \d+\.\d", README)
    assert spreads
    assert [each for each in spreads if each not in RESULTS] == []
