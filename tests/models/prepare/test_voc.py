"""``semples prepare voc`` on tiny downloads, whole and damaged."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.cli import main
from models.config import Config, dump_config
from models.data.classes import read_class_list
from models.data.labels import read_folder, read_label_rows
from models.data.official import spread
from models.data.voc import VOC_CLASSES, find_voc, read_voc, voc_list
from tests.helpers.downloads import make_voc, voc_map

PHOTOS = 3  # of each list: some with VOC's own label map, some with SBD's


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["semples", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "voc", tmp_path / "out"
    place = make_voc(root, photos=PHOTOS)
    options = [root, "--output", out, "--photos", PHOTOS]
    assert run(monkeypatch, "prepare", "voc", *options) == 0
    shown = capsys.readouterr()
    assert "8 photos, 8 of them read whole" in shown.out.replace("\n", " ")
    assert f"--images {place / 'JPEGImages'} --labels {out / 'labels.csv'}" in shown.out
    assert "semples:" not in shown.err

    assert read_class_list(out / "classes.txt") == VOC_CLASSES
    for name, split in (("labels", "train_aug"), ("labels_train", "train"), ("labels_val", "val")):
        samples = read_folder(place / "JPEGImages", out / f"{name}.csv", VOC_CLASSES)
        assert samples == read_voc(root, split, photos=PHOTOS)
        maps = out / "ground_truth" / split
        assert {path.stem for path in maps.iterdir()} == {each.stem for each in samples}
        for listed in spread(voc_list(split), PHOTOS):
            with Image.open(maps / f"{listed.stem}.png") as picture:
                assert np.array_equal(np.array(picture), voc_map(listed))
    assert list((root / "benchmark_RELEASE").rglob("*.mat"))  # SBD had its part in it

    before = contents(out)
    (out / "ground_truth" / "val" / f"{samples[0].stem}.png").unlink()
    assert run(monkeypatch, "prepare", "voc", *options) == 0
    assert "val: 1 label maps written, 2 kept" in capsys.readouterr().out
    assert contents(out) == before


def test_the_commands_take_what_it_wrote(
    tiny_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_voc(tmp_path / "voc", photos=PHOTOS)
    options = [tmp_path / "voc", "--output", tmp_path / "out", "--photos", PHOTOS]
    assert run(monkeypatch, "prepare", "voc", *options) == 0
    *command, config, name = capsys.readouterr().out.splitlines()[-1].split()[1:]
    assert (config, name) == ("--config", "my.yaml")
    (tmp_path / "tiny.yaml").write_text(
        dump_config(tiny_config.model_copy(update={"synonyms": {}}))
    )
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *command, "--config", "tiny.yaml", "--device", "cpu") == 0
    assert (tmp_path / "work" / "train-generator" / "generator.safetensors").is_file()
    assert read_class_list(tmp_path / "work" / "classes.txt") == VOC_CLASSES


def test_no_torch_is_needed() -> None:
    code = "import sys, models.prepare.coco, models.prepare.voc; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_sbd_only_its_masks_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_voc(tmp_path / "voc", photos=PHOTOS, sbd=False)
    out = tmp_path / "out"
    options = [tmp_path / "voc", "--output", out, "--photos", PHOTOS]
    assert run(monkeypatch, "prepare", "voc", *options) == 0
    assert "no masks of SBD: ground_truth/train_aug is left out" in capsys.readouterr().err
    assert {path.name for path in (out / "ground_truth").iterdir()} == {"train", "val"}
    assert len(read_label_rows(out / "labels.csv")) == PHOTOS


def test_masks_of_others_as_png_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_voc(tmp_path / "voc", photos=PHOTOS, sbd=False)
    (place / "SegmentationClassAug").mkdir()
    for listed in spread(voc_list("train_aug"), PHOTOS):
        Image.fromarray(voc_map(listed)).save(place / "SegmentationClassAug" / f"{listed.stem}.png")
    options = [place, "--output", tmp_path / "out", "--photos", PHOTOS]
    assert run(monkeypatch, "prepare", "voc", *options) == 0
    assert "train_aug: 3 label maps written" in capsys.readouterr().out


def test_it_is_found_from_each_of_its_folders(tmp_path: Path) -> None:
    place = make_voc(tmp_path / "voc", photos=1)
    for root in (tmp_path / "voc", place.parent, place):
        found = find_voc(root)
        assert found.root == place
        assert found.additional is not None
        assert found.additional.samefile(tmp_path / "voc/benchmark_RELEASE/dataset/cls")


def test_nothing_there_says_what_to_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "prepare", "voc", tmp_path, "--output", tmp_path / "out") == 2
    line = capsys.readouterr().err
    assert (
        f"expected VOCdevkit/VOC2012/JPEGImages in {tmp_path}, got none; unpack VOCtrainval_"
        in line
    )
    assert "md5 6cd6e144f989b92b3379bac3b3de84fd" in line
    assert not (tmp_path / "out").exists()


def test_thorough_checks_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "voc"
    make_voc(root, photos=PHOTOS)
    options = [root, "--output", tmp_path / "out", "--photos", PHOTOS]
    assert run(monkeypatch, "prepare", "voc", *options, "--thorough") == 0
    assert f"{root}: 0 archives, with the published MD5" in capsys.readouterr().out
    (root / "benchmark.tgz").write_bytes(b"half of it")
    assert run(monkeypatch, "prepare", "voc", *options) == 0
    assert run(monkeypatch, "prepare", "voc", *options, "--thorough") == 2
    assert "expected the MD5 82b4d87ceb2ed10f6038a1cba92111cb of" in capsys.readouterr().err


def test_the_known_pair(
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = make_voc(tmp_path / "voc", photos=PHOTOS)
    pair = shared / "data" / "voc_pair"
    photo = place / "JPEGImages" / "2007_000129.jpg"
    truth = place / "SegmentationClass" / "2007_000129.png"
    photo.write_bytes((pair / photo.name).read_bytes())
    truth.write_bytes((pair / truth.name).read_bytes())
    options = [tmp_path / "voc", "--output", tmp_path / "out", "--photos", PHOTOS]
    assert run(monkeypatch, "prepare", "voc", *options) == 0
    assert "original" not in capsys.readouterr().err
    with Image.open(photo) as picture:
        picture.save(photo, quality=50)
    with Image.open(truth) as picture:
        Image.fromarray(np.where(np.array(picture) == 255, 0, np.array(picture))).save(truth)
    assert run(monkeypatch, "prepare", "voc", *options) == 0
    told = capsys.readouterr().err
    assert "2007_000129.jpg is not the original file" in told
    assert "2007_000129.png has other pixels than the original" in told


@pytest.mark.skipif(os.name != "posix", reason="limits a process's files")
def test_a_full_disk_is_one_line_and_what_was_written_is_kept(tmp_path: Path) -> None:
    """No file may be larger than the label maps' first bytes: as if the disk were full."""
    make_voc(tmp_path / "voc", photos=PHOTOS)
    code = (
        "import resource, sys; from models.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)); main()"
    )
    options = ["prepare", "voc", tmp_path / "voc", "--output", tmp_path / "out", "--photos", PHOTOS]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, options)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "File too large" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "out").rglob("*.png"))
    assert len(read_label_rows(tmp_path / "out" / "labels.csv")) == PHOTOS
