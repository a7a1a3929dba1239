"""``semples export`` as a user meets it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.cli import main
from tests.helpers.export_folder import make_folder

FILES = {
    "voc": {"JPEGImages", "SegmentationClass", "ImageSets", "labelmap.txt", "classes.txt"},
    "coco": {"annotations_rle.json", "annotations_polygons.json"},
    "cvat": {"annotations.zip", "labels.json"},
    "label-studio": {"tasks_0001.json", "interface.xml"},
}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["semples", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("form", FILES)
def test_every_format(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, images = make_folder(tmp_path)
    options = ["--images", images, "--format", form, "--output", tmp_path / "out"]
    assert run(monkeypatch, "export", folder, *options) == 0
    assert {each.name for each in (tmp_path / "out").iterdir()} == FILES[form]
    assert capsys.readouterr().out.replace("\n", " ").startswith(f"{tmp_path / 'out'}: 4 photos")
    assert run(monkeypatch, "export", folder, *options) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err


def test_what_make_pseudo_masks_wrote(
    tiny_bundle: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, folder = tiny_data / "images", tmp_path / "run"
    made = ["--labels", tiny_data / "labels.csv", "--output", folder, "--bundle", tiny_bundle]
    assert run(monkeypatch, "make-pseudo-masks", "--images", images, *made) == 0
    options = ["--images", images, "--format", "voc", "--output", tmp_path / "voc"]
    assert run(monkeypatch, "export", folder, *options) == 0
    for number in range(8):
        name = f"photo{number}.png"
        with (
            Image.open(tmp_path / "voc" / "SegmentationClass" / name) as exported,
            Image.open(folder / "masks" / name) as mask,
        ):
            assert np.array_equal(np.array(exported), np.array(mask))
            assert exported.info["Model"] == mask.info["Model"]


@pytest.mark.parametrize("form", FILES)
def test_a_broken_mask_leaves_no_export(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, images = make_folder(tmp_path)
    (folder / "masks" / "turned.png").write_bytes(b"")
    options = ["--images", images, "--format", form, "--output", tmp_path / "out"]
    assert run(monkeypatch, "export", folder, *options) == 2
    assert "turned.png" in capsys.readouterr().err
    assert {each.name for each in tmp_path.iterdir()} == {"run", "images"}


def test_a_prefix_is_for_label_studio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, images = make_folder(tmp_path)
    options = ["--images", images, "--output", tmp_path / "out", "--image-prefix", "s3://bucket/"]
    assert run(monkeypatch, "export", folder, *options, "--format", "voc") == 2
    assert "--image-prefix with label-studio only" in capsys.readouterr().err
    assert run(monkeypatch, "export", folder, *options, "--format", "label-studio") == 0
    assert '"s3://bucket/flat.jpg"' in (tmp_path / "out" / "tasks_0001.json").read_text()


def test_no_torch_is_needed() -> None:
    code = (
        "import sys\n"
        "import models.exports.coco, models.exports.cvat, models.exports.label_studio\n"
        "import models.data.mask_folder, models.exports.voc\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
