"""``semples prepare voc`` on downloads that are damaged, each in one way."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from models.cli import main
from models.data.official import spread
from models.data.voc import voc_list
from tests.helpers.downloads import SIZE, make_voc, voc_xml

PHOTOS = 3  # of each list


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["semples", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def grow(path: Path) -> None:
    Image.new("RGB", (50, 60)).save(path)


def recolor(path: Path) -> None:
    Image.new("RGB", SIZE[::-1], "red").save(path)


def shrink(path: Path) -> None:
    Image.new("L", (10, 10)).save(path)


def lift(path: Path) -> None:
    Image.new("L", SIZE[::-1], 21).save(path)


def other_mat(path: Path) -> None:
    savemat(path, {"GTinst": {"Segmentation": np.zeros(SIZE)}})


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


VAL, AUG = (spread(voc_list(split), PHOTOS)[1] for split in ("val", "train_aug"))
SBD = f"benchmark_RELEASE/dataset/cls/{AUG.stem}.mat"
SIZED = voc_xml(VAL).replace(f"<width>{SIZE[1]}</width>", "")
AGAIN = "unpack VOCtrainval_11-May-2012.tar (from http://host.robots.ox.ac.uk/"
DAMAGE = {
    "a missing photo": (f"JPEGImages/{VAL.stem}.jpg", Path.unlink, f"are {VAL.stem}.jpg (1 in all); {AGAIN}"),
    "an empty photo": (f"JPEGImages/{VAL.stem}.jpg", text(""), f"are {VAL.stem}.jpg (1 in all)"),
    "a truncated photo": (f"JPEGImages/{VAL.stem}.jpg", cut, f"{VAL.stem}.jpg: cannot read the image"),
    "a photo of another size": (f"JPEGImages/{VAL.stem}.jpg", grow, "got 50 x 60 pixels instead of 40 x 30 in"),
    "a missing list": ("ImageSets/Segmentation/train.txt", Path.unlink, "train.txt, got no such file; unpack"),
    "another list": ("ImageSets/Segmentation/val.txt", text("a\nb\n"), "got 2, 0 of them the same"),
    "missing XML": (f"Annotations/{VAL.stem}.xml", Path.unlink, f"No such file or directory: {{}}/{VAL.stem}.xml"),
    "XML without a size": (f"Annotations/{VAL.stem}.xml", text(SIZED), "expected the photo's size in"),
    "a missing map": (f"SegmentationClass/{VAL.stem}.png", Path.unlink, f"of val, got none of {VAL.stem} (1 in all)"),
    "a truncated map": (f"SegmentationClass/{VAL.stem}.png", cut, f"expected a label map in {{}}/{VAL.stem}.png"),
    "a colored map": (f"SegmentationClass/{VAL.stem}.png", recolor, "got mode RGB"),
    "a map of another size": (f"SegmentationClass/{VAL.stem}.png", shrink, "of the photo's 40 x 30 pixels in"),
    "unknown indices": (f"SegmentationClass/{VAL.stem}.png", lift, "expected indices from 0 to 20 and 255 in"),
    "a missing mask of SBD": (f"../../{SBD}", Path.unlink, f"got none of {AUG.stem} (1 in all); unpack benchmark"),
    "a truncated mask of SBD": (f"../../{SBD}", cut, "expected SBD's GTcls.Segmentation in"),
    "another mask of SBD": (f"../../{SBD}", other_mat, "expected SBD's GTcls.Segmentation in"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_line_and_exit_code_2(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, damage, message = DAMAGE[case]
    place = make_voc(tmp_path / "voc", photos=PHOTOS)
    damage(place / name)
    options = [tmp_path / "voc", "--output", tmp_path / "out", "--photos", PHOTOS]
    assert run(monkeypatch, "prepare", "voc", *options) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "semples: " in line]
    assert len(lines) == 1
    assert message.format((place / name).parent) in lines[0]
