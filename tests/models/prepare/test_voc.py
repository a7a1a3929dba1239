from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from models.config import Config, dump_config
from models.data.classes import read_class_list
from models.data.labels import read_folder, read_label_rows
from models.data.official import evenly_spaced
from models.data.voc import VOC_CLASSES, find_voc, read_voc, voc_list
from tests.helpers.command import Done, semples, semples_ok, semples_refuses, small_files
from tests.helpers.downloads import SIZE, make_voc, voc_map, voc_xml

PHOTOS = 3  # of each list: some with VOC's own label map, some with SBD's


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def prepare(folder: Path, *more: object, code: int = 0) -> Done:
    options = ["--output", folder / "out", "--photos", PHOTOS, *more]
    done = semples("prepare", "voc", folder / "voc", *options)
    assert done.returncode == code, done.stderr
    return done


def test_end_to_end(tmp_path: Path) -> None:
    root, out = tmp_path / "voc", tmp_path / "out"
    place = make_voc(root, photos=PHOTOS)
    done = prepare(tmp_path)
    assert "8 photos, 8 of them read whole" in done.stdout.replace("\n", " ")
    assert f"--images {place / 'JPEGImages'} --labels {out / 'labels.csv'}" in done.stdout
    assert "semples:" not in done.stderr

    assert read_class_list(out / "classes.txt") == VOC_CLASSES
    for name, split in (("labels", "train_aug"), ("labels_train", "train"), ("labels_val", "val")):
        samples = read_folder(place / "JPEGImages", out / f"{name}.csv", VOC_CLASSES)
        assert samples == read_voc(root, split, photos=PHOTOS)
        maps = out / "ground_truth" / split
        assert {path.stem for path in maps.iterdir()} == {each.stem for each in samples}
        for listed in evenly_spaced(voc_list(split), PHOTOS):
            with Image.open(maps / f"{listed.stem}.png") as picture:
                assert np.array_equal(np.array(picture), voc_map(listed))
    assert list((root / "benchmark_RELEASE").rglob("*.mat"))  # SBD had its part in it

    before = contents(out)
    (out / "ground_truth" / "val" / f"{samples[0].stem}.png").unlink()
    assert "val: 1 label maps written, 2 kept" in prepare(tmp_path).stdout
    assert contents(out) == before


def test_the_commands_take_what_it_wrote(tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_voc(tmp_path / "voc", photos=PHOTOS)
    *command, config, name = prepare(tmp_path).stdout.splitlines()[-1].split()[1:]
    assert (config, name) == ("--config", "my.yaml")
    (tmp_path / "tiny.yaml").write_text(dump_config(tiny_config.model_copy(update={"synonyms": {}})))
    monkeypatch.chdir(tmp_path)
    assert semples(*command, "--config", "tiny.yaml", "--device", "cpu").returncode == 0
    assert (tmp_path / "work" / "train-generator" / "generator.safetensors").is_file()
    assert read_class_list(tmp_path / "work" / "classes.txt") == VOC_CLASSES


def test_without_sbd_only_its_masks_are_missing(tmp_path: Path) -> None:
    make_voc(tmp_path / "voc", photos=PHOTOS, sbd=False)
    out = tmp_path / "out"
    assert "no masks of SBD: ground_truth/train_aug is left out" in prepare(tmp_path).stderr
    assert {path.name for path in (out / "ground_truth").iterdir()} == {"train", "val"}
    assert len(read_label_rows(out / "labels.csv")) == PHOTOS


def test_masks_of_others_as_png_are_taken(tmp_path: Path) -> None:
    place = make_voc(tmp_path / "voc", photos=PHOTOS, sbd=False)
    (place / "SegmentationClassAug").mkdir()
    for listed in evenly_spaced(voc_list("train_aug"), PHOTOS):
        Image.fromarray(voc_map(listed)).save(place / "SegmentationClassAug" / f"{listed.stem}.png")
    options = [place, "--output", tmp_path / "out", "--photos", PHOTOS]
    assert "train_aug: 3 label maps written" in semples_ok("prepare", "voc", *options)


def test_it_is_found_from_each_of_its_folders(tmp_path: Path) -> None:
    place = make_voc(tmp_path / "voc", photos=1)
    for root in (tmp_path / "voc", place.parent, place):
        found = find_voc(root)
        assert found.root == place
        assert found.additional is not None
        assert found.additional.samefile(tmp_path / "voc/benchmark_RELEASE/dataset/cls")


def test_nothing_there_says_what_to_download(tmp_path: Path) -> None:
    line = semples_refuses("prepare", "voc", tmp_path, "--output", tmp_path / "out")
    assert f"expected VOCdevkit/VOC2012/JPEGImages in {tmp_path}, got none; unpack VOCtrain" in line
    assert "md5 6cd6e144f989b92b3379bac3b3de84fd" in line
    assert not (tmp_path / "out").exists()


def test_thorough_checks_archives(tmp_path: Path) -> None:
    root = tmp_path / "voc"
    make_voc(root, photos=PHOTOS)
    whole = prepare(tmp_path, "--thorough").stdout
    assert f"{root}: 0 archives, with the published MD5" in whole
    (root / "benchmark.tgz").write_bytes(b"half of it")
    prepare(tmp_path)
    refused = prepare(tmp_path, "--thorough", code=2).stderr
    assert "expected the MD5 82b4d87ceb2ed10f6038a1cba92111cb of" in refused


def test_the_known_pair(shared: Path, tmp_path: Path) -> None:
    place = make_voc(tmp_path / "voc", photos=PHOTOS)
    pair = shared / "data" / "voc_pair"
    photo = place / "JPEGImages" / "2007_000129.jpg"
    truth = place / "SegmentationClass" / "2007_000129.png"
    photo.write_bytes((pair / photo.name).read_bytes())
    truth.write_bytes((pair / truth.name).read_bytes())
    assert "original" not in prepare(tmp_path).stderr
    with Image.open(photo) as picture:
        picture.save(photo, quality=50)
    with Image.open(truth) as picture:
        Image.fromarray(np.where(np.array(picture) == 255, 0, np.array(picture))).save(truth)
    notes = prepare(tmp_path).stderr
    assert "2007_000129.jpg is not the original file" in notes
    assert "2007_000129.png has other pixels than the original" in notes


def test_a_full_disk_is_one_line_and_what_was_written_is_kept(tmp_path: Path) -> None:
    make_voc(tmp_path / "voc", photos=PHOTOS)
    with small_files(500):  # fewer bytes than a label map
        done = prepare(tmp_path, code=2)
    assert "File too large" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "out").rglob("*.png"))
    assert len(read_label_rows(tmp_path / "out" / "labels.csv")) == PHOTOS


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def picture(mode: str, size: tuple[int, int], color: str | int = 0) -> Callable[[Path], object]:
    return lambda path: Image.new(mode, size, color).save(path)


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


VAL, AUG = (evenly_spaced(voc_list(split), PHOTOS)[1] for split in ("val", "train_aug"))
OTHER_MAT = {"GTinst": {"Segmentation": np.zeros(SIZE)}}
JPEG, MAP = f"JPEGImages/{VAL.stem}.jpg", f"SegmentationClass/{VAL.stem}.png"
SBD = f"../../benchmark_RELEASE/dataset/cls/{AUG.stem}.mat"
SIZED = voc_xml(VAL).replace(f"<width>{SIZE[1]}</width>", "")
AGAIN = "unpack VOCtrainval_11-May-2012.tar (from http://host.robots.ox.ac.uk/"
DAMAGE = {
    "a missing photo": (JPEG, Path.unlink, f"are {VAL.stem}.jpg (1 in all); {AGAIN}"),
    "an empty photo": (JPEG, text(""), f"are {VAL.stem}.jpg (1 in all)"),
    "a truncated photo": (JPEG, cut, f"{VAL.stem}.jpg: cannot read the image"),
    "a photo of another size": (JPEG, picture("RGB", (50, 60)), "got 50 x 60 pixels instead of 40 x 30 in"),
    "a missing list": ("ImageSets/Segmentation/train.txt", Path.unlink, "train.txt, got no such file; unpack"),
    "another list": ("ImageSets/Segmentation/val.txt", text("a\nb\n"), "got 2, 0 of them the same"),
    "missing XML": (f"Annotations/{VAL.stem}.xml", Path.unlink, f"No such file or directory: {{}}/{VAL.stem}.xml"),
    "XML without a size": (f"Annotations/{VAL.stem}.xml", text(SIZED), "expected the photo's size in"),
    "a missing map": (MAP, Path.unlink, f"of val, got none of {VAL.stem} (1 in all)"),
    "a truncated map": (MAP, cut, f"expected a label map in {{}}/{VAL.stem}.png"),
    "a colored map": (MAP, picture("RGB", SIZE[::-1], "red"), "got RGB"),
    "a map of another size": (MAP, picture("L", (10, 10)), "of the photo's 40 x 30 pixels in"),
    "unknown indices": (MAP, picture("L", SIZE[::-1], 21), "expected indices from 0 to 20 and 255 in"),
    "a missing mask of SBD": (SBD, Path.unlink, f"got none of {AUG.stem} (1 in all); unpack benchmark"),
    "a truncated mask of SBD": (SBD, cut, "expected SBD's GTcls.Segmentation in"),
    "another mask of SBD": (SBD, lambda path: savemat(path, OTHER_MAT), "expected SBD's GTcls.Segmentation in"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_line_and_exit_code_2(case: str, tmp_path: Path) -> None:
    name, damage, message = DAMAGE[case]
    place = make_voc(tmp_path / "voc", photos=PHOTOS)
    damage(place / name)
    errors = prepare(tmp_path, code=2).stderr.splitlines()
    [line] = [each for each in errors if "semples: " in each]
    assert message.format((place / name).parent) in line
