"""A figure is only given where it means something: which ground truths are refused, and what is said of them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.data.mask_files import label_map_png, voc_palette
from models.io import write_atomically
from tests.helpers.command import semples_ok, semples_refuses

_Map = NDArray[np.uint8]
_NAMES = {1: "cat", 2: "cup", 3: "bowl", 7: "dog"}


def _map(*values: int) -> _Map:
    """Stripes of values."""
    return np.repeat(np.array(values, dtype=np.uint8), 6)[None].repeat(8, axis=0)


def _evaluate(place: Path, truth: Callable[[_Map], Image.Image | _Map], run: Callable[..., str]) -> str:
    (place / "classes.txt").write_text("".join(f"{index} {name}\n" for index, name in _NAMES.items()))
    for number, found in enumerate((_map(0, 1, 2, 3), _map(0, 2, 2, 7), _map(1, 1, 3, 0))):
        write_atomically(place / "found" / f"{number}.png", label_map_png(found))
        true = truth(found)
        (place / "true").mkdir(exist_ok=True)
        if isinstance(true, Image.Image):
            true.save(place / "true" / f"{number}.png")
        else:
            write_atomically(place / "true" / f"{number}.png", label_map_png(true))
    folders = ["--ground-truth", place / "true", "--predictions", place / "found"]
    return run("evaluate", *folders, "--classes", place / "classes.txt", "--json")


def _colored(label_map: _Map) -> Image.Image:
    return Image.fromarray(voc_palette()[label_map])


def _own_palette(label_map: _Map) -> Image.Image:
    """As Pillow and optimizers of PNGs write VOC's colors: values in the order of the colors."""
    return _colored(label_map).convert("P", palette=Image.Palette.ADAPTIVE)


def _ordered(label_map: _Map, order: dict[int, int]) -> _Map:
    return np.array([order.get(value, value) for value in range(256)], dtype=np.uint8)[label_map]


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (
            lambda found: np.where(found == 2, 255, 0).astype(np.uint8),
            "a listed class occurs, got the values 0, 255 alone",
        ),
        (np.zeros_like, "a listed class occurs, got the values 0 alone in 3 files"),
        (lambda found: np.full_like(found, 255), "a listed class occurs, got the values 255 alone"),
        (lambda found: found + 100, "values of listed classes, 0 or 255 in the ground truth, got 100"),
        (lambda found: np.where(found == 1, 5, found).astype(np.uint8), "0 or 255 in the ground truth, got 5"),
        (lambda found: Image.fromarray((found * 80).astype(np.uint8)), "0 or 255 in the ground truth, got"),
        (lambda found: found[:, :-1], "of the ground truth's size"),
        (lambda found: found.T, "of the ground truth's size"),
        (_colored, "mode L or P"),
        (lambda found: Image.fromarray(found > 0), "mode L or P"),
        (lambda found: Image.fromarray(found.astype(np.uint16)), "mode L or P"),
        (_own_palette, "VOC's colors by another palette"),
        # No listed class.
        (lambda found: np.where(found > 0, 200, 0).astype(np.uint8), "0 or 255 in the ground truth, got 200"),
        (lambda found: (found > 0).astype(np.uint8) * 128, "0 or 255 in the ground truth, got 128"),
        (lambda found: np.where(found > 0, 0, 255).astype(np.uint8), "a listed class occurs, got the values 0, 255"),
        # Another size.
        (lambda found: found.repeat(2, axis=0).repeat(2, axis=1), "of the ground truth's size"),
        (lambda found: found[:1, :1], "of the ground truth's size"),
        (lambda found: np.pad(found, 1), "of the ground truth's size"),
        # In colors.
        (lambda found: _colored(found).convert("RGBA"), "mode L or P"),
        (lambda found: Image.fromarray(found).convert("LA"), "mode L or P"),
        (lambda found: _colored(found).quantize(16), "VOC's colors by another palette"),
        (lambda found: _colored(found).convert("L"), "0 or 255 in the ground truth, got"),
        # In another order.
        (lambda found: _ordered(found, {1: 7, 2: 3, 3: 2, 7: 1}), "fits in another order: 1 is found as 7, 2 is"),
        (lambda found: _ordered(found, {1: 3, 3: 2, 2: 7, 7: 1}), "fits in another order"),
        (lambda found: _ordered(found, {1: 3, 2: 7, 3: 1, 7: 2}), "fits in another order"),
    ],
)
def test_what_is_no_ground_truth(truth: Callable[[_Map], _Map], message: str, tmp_path: Path) -> None:
    said = _evaluate(tmp_path, truth, semples_refuses)
    assert message in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("offset", "names"), [(-1, {1: "cat", 2: "cup", 3: "bowl", 7: "dog", 6: "x"}), (1, {4: "y", 8: "z"})]
)
def test_values_that_are_off_by_one(
    offset: int, names: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, name in names.items():
        monkeypatch.setitem(_NAMES, index, name)

    def shifted(found: _Map) -> _Map:
        return np.where(found > 0, found.astype(int) + offset, found).astype(np.uint8)

    assert f"fits {offset:+d} better" in _evaluate(tmp_path, shifted, semples_refuses)


@pytest.mark.parametrize(
    "truth",
    [
        lambda found: found,
        Image.fromarray,  # gray
        lambda found: np.where(found == 3, 255, found).astype(np.uint8),
        lambda found: np.roll(found, 3, axis=1),  # bad masks are measured, not refused
        lambda found: np.where(found == 2, 1, 0).astype(np.uint8),
        lambda found: _ordered(found, {1: 2, 2: 1}),  # cats taken for cups, and cups for cats
    ],
)
def test_what_is_measured(truth: Callable[[_Map], _Map], tmp_path: Path) -> None:
    assert json.loads(_evaluate(tmp_path, truth, semples_ok))["images"] == 3


def test_no_class_that_counts(tmp_path: Path) -> None:
    _evaluate(tmp_path, lambda found: np.where(found == 2, 2, 0).astype(np.uint8), semples_ok)
    folders = ["--ground-truth", tmp_path / "true", "--predictions", tmp_path / "found"]
    command = ["evaluate", *folders, "--classes", tmp_path / "classes.txt", "--min-pixels"]
    assert " % (masks as they are" in semples_ok(*command, 144)
    for least in (145, 300, 432):  # of the background alone
        assert f"at least {least} true pixels, got at most 144" in semples_refuses(*command, least)
    for least in (433, 10**12):
        assert "mean IoU, fixed: none" in semples_ok(*command, least)
        assert json.loads(semples_ok(*command, least, "--json"))["mean_iou"] is None


@pytest.mark.parametrize("same", [Path.symlink_to, Path.hardlink_to, None])
def test_masks_that_are_their_own_ground_truth(same: Callable[[Path, Path], None] | None, tmp_path: Path) -> None:
    _evaluate(tmp_path, lambda found: found, semples_ok)
    truth = tmp_path / "true" if same else tmp_path / "found"
    if same:
        for path in (tmp_path / "found").iterdir():
            (truth / path.name).unlink()
            same(truth / path.name, path)
    folders = ["--ground-truth", truth, "--predictions", tmp_path / "found", "--classes", tmp_path / "classes.txt"]
    assert "got one file for both" in semples_refuses("evaluate", *folders)


def test_scores_are_held_against_the_same_ground_truth(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("1 cat\n")
    write_atomically(tmp_path / "true" / "a.png", label_map_png(_map(0, 255)))
    (tmp_path / "scores").mkdir()
    maps = {"scores": np.ones((1, 8, 12), np.float16), "class_index": np.array([1]), "class_name": np.array(["cat"])}
    np.savez(tmp_path / "scores" / "a.npz", **maps, image_size=np.array([8, 12]))  # type: ignore[arg-type]
    options = ["--ground-truth", tmp_path / "true", "--classes", tmp_path / "classes.txt"]
    said = semples_refuses("evaluate", *options, "--scores", tmp_path / "scores")
    assert "a listed class occurs, got the values 0, 255 alone in 1 files" in said
