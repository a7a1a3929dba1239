import io
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.config import Config, EncoderDecoderConfig, dump_config
from tests.helpers.command import semples, semples_ok, semples_refuses
from tests.helpers.paths import PHOTO


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **options)
    return buffer.getvalue()


def huge_png() -> bytes:
    """81 megapixels in a few kilobytes."""
    small = encoded(Image.new("1", (8, 8)))
    header = b"IHDR" + (9000).to_bytes(4, "big") * 2 + small[24:29]
    return small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:]


GRAY16 = Image.fromarray(np.full((40, 50), 30_000, dtype=np.uint16))
FRAMES = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]

GOOD = {
    "cmyk.jpg": encoded(Image.new("CMYK", (50, 40), (10, 20, 30, 40)), "JPEG"),
    "gray16.png": encoded(GRAY16),
    "palette.png": encoded(Image.new("RGB", (50, 40), "red").convert("P")),
    "pixel.png": encoded(Image.new("RGB", (1, 1), "red")),
    "alpha.webp": encoded(Image.new("RGBA", (50, 40), (1, 2, 3, 4)), "WEBP"),
}
BAD = {
    "truncated.jpg": (PHOTO.read_bytes()[:5000], "cannot read the image"),
    "text.jpg": (b"hello", "JPEG, PNG or WebP"),
    "missing.jpg": (None, "No such file"),
    "empty.jpg": (b"", "cannot read the image"),
    "huge.png": (huge_png(), "expected at most 40000000 pixels"),
    "moving.png": (encoded(FRAMES[0], save_all=True, append_images=FRAMES[1:]), "expected a still image"),
    "moving.gif": (encoded(FRAMES[0], "GIF"), "JPEG, PNG or WebP"),
}


@pytest.mark.parametrize("name", GOOD)
def test_odd_photos_get_a_mask(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(GOOD[name])
    out = tmp_path / "out"
    options = ["--labels", "cat", "--output", out, "--bundle", tiny_bundle]
    semples_ok("predict", tmp_path / name, *options)
    with Image.open(tmp_path / name) as photo, Image.open(out / f"{Path(name).stem}.png") as mask:
        assert mask.size == photo.size


@pytest.mark.parametrize("name", BAD)
def test_bad_photos_get_one_line(
    name: str, tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    options = ["--labels", "cat", "--output", tmp_path / "out", "--bundle", tiny_bundle]
    semples_refuses("predict", tmp_path / name, *options)
    semples_refuses("segment", tmp_path / name, *options[2:])
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"semples: {tmp_path / name}: ")
        assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Missing option '--labels'"),
        (["--labels", "cat", "--threads", "-1"], "Invalid value for '--threads'"),
        (["--labels", "cat", "--colour"], "No such option"),
        (["--labels", ""], "expected at least one label, got none"),
        (["--labels", "cat"] * 40, "expected at most 32 labels, got 40"),
        (["--labels", "cat", "--device", "meta"], "expected a usable device"),
        (["--labels", "cat", "--device", "tpu9"], "got 'tpu9'"),
        (["--labels", "catt"], "expected a known label, got 'catt'; nearest known: cat"),
        (["--labels", "cat", "--refine", "magic"], "expected one of none, pamr"),
        (["--labels", "cat", "--background-threshold", "7"], "in (0, 1), got 7.0"),
        (["--labels", "cat", "--bundle", "nope"], "got 'nope'"),
    ],
)
def test_bad_options_get_one_line(
    options: list[str], message: str, tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    semples_refuses("predict", PHOTO, "--bundle", tiny_bundle, *options, "--output", tmp_path / "out")
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("semples: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_an_unknown_label_hints_at_the_open_vocabulary_where_there_is_one(
    tiny_bundle: Path, tiny_open_bundle: Path, tmp_path: Path
) -> None:
    shutil.copy(PHOTO, tmp_path)
    (tmp_path / "labels.csv").write_text("image,labels\ncat.jpg,whiskers\n")
    one = ("predict", PHOTO, "--labels", "whiskers")
    folder = ("make-pseudo-masks", "--images", tmp_path, "--labels", tmp_path / "labels.csv")
    for command in (one, folder):
        refused = semples_refuses(*command, "--output", tmp_path / "out", "--bundle", tiny_open_bundle)
        assert "got 'whiskers'" in refused
        assert refused.endswith("; --vocabulary open accepts other labels\n")
        refused = semples_refuses(*command, "--output", tmp_path / "out", "--bundle", tiny_bundle)
        assert "got 'whiskers'" in refused
        assert "--vocabulary" not in refused


def test_the_photo_itself_is_never_overwritten(tiny_bundle: Path, tmp_path: Path) -> None:
    photo = tmp_path / "cat.png"
    photo.write_bytes(GOOD["palette.png"])
    options = ["--labels", "cat", "--output", tmp_path, "--bundle", tiny_bundle]
    semples_refuses("predict", photo, *options)
    assert photo.read_bytes() == GOOD["palette.png"]


def test_a_folder_is_not_a_photo(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ["--labels", "cat", "--output", tmp_path / "out", "--bundle", tiny_bundle]
    semples_refuses("predict", tmp_path, *options)


def test_segment_photos_and_folders(tiny_segmenter_bundle: Path, tiny_data: Path, tmp_path: Path) -> None:
    options = ["--output", tmp_path, "--bundle", tiny_segmenter_bundle, "--threads", 1]
    printed = semples_ok("segment", PHOTO, tiny_data / "images", *options)
    assert "9 photos segmented, 0 failed" in printed
    assert "cat.jpg: " in printed
    assert len(list(tmp_path.iterdir())) == 27
    with Image.open(tmp_path / "cat.png") as mask, Image.open(PHOTO) as original:
        assert mask.mode == "P"
        assert mask.size == original.size
        assert set(np.unique(np.array(mask))) <= {0, 3, 4, 7, 9}
    record = json.loads((tmp_path / "cat.json").read_text())
    assert record["options"]["background_threshold"] is None
    assert record["exif_orientation"] == 1


def test_a_broken_photo_fails_alone_in_segment(tiny_segmenter_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jpg").write_bytes(PHOTO.read_bytes()[:300])
    (tmp_path / "in" / "._good.jpg").write_bytes(b"of macOS")
    (tmp_path / "in" / "good.jpg").write_bytes(PHOTO.read_bytes())
    places = [tmp_path / "in", "--output", tmp_path / "out"]
    done = semples("segment", *places, "--bundle", tiny_segmenter_bundle)
    assert done.returncode == 1
    assert "1 photos segmented, 1 failed" in done.stdout
    assert "bad.jpg: cannot read the image" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{photo}", "--bundle", "{unable}"], "expected a bundle with a segmenter, got 'tiny'"),
        (["{photo}", "--bundle", "{able}", "--refine", "magic"], "expected one of none, pamr"),
        (["{photo}", "--bundle", "{able}", "--min-confidence", "2"], "in [0, 1), got 2.0"),
        (["{empty}", "--bundle", "{able}"], "expected at least one photo, got none"),
        (["{missing}", "--bundle", "{able}"], "No such file"),
        (["{photo}", "{photo}", "{twin}", "--bundle", "{able}"], "expected photos whose results have different names"),
    ],
)
def test_mistakes_of_segment_are_one_line(
    tiny_segmenter_bundle: Path, tiny_bundle: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat.png").write_bytes(b"")
    places = {
        "{photo}": PHOTO, "{unable}": tiny_bundle, "{able}": tiny_segmenter_bundle,
        "{empty}": tmp_path / "empty", "{missing}": tmp_path / "no.jpg", "{twin}": tmp_path / "cat.png",
    }  # fmt: skip
    given = [places.get(each, each) for each in arguments]
    refused = semples_refuses("segment", *given, "--output", tmp_path / "out")
    assert message in refused
    assert [line for line in refused.splitlines() if line.startswith("semples: ")]
    assert not (tmp_path / "out").exists()


def test_run_all_misses_the_segmenter_first(
    tiny_config: Config, tiny_data: Path, data_options: list[object], tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(
        dump_config(tiny_config.model_copy(update={"segmenter": EncoderDecoderConfig(backbone="resnot5")}))
    )
    done = semples("run-all", tmp_path / "work", *data_options, "--config", config, "--device", "cpu")
    assert done.returncode == 2
    assert "segmenter.backbone: expected a backbone that timm knows, perhaps resnet5" in done.stderr
    assert "'resnot5'" in done.stderr
    assert "train-generator" not in done.stdout + done.stderr
    # A start that failed does not bind its directory to the labels that it had.
    labels = tmp_path / "labels.csv"
    labels.write_text("image,labels\nphoto0.jpg,bowl\n")
    config.write_text(dump_config(tiny_config))
    again = semples(
        "run-all", tmp_path / "work", "--images", tiny_data / "images", "--labels", labels,
        "--config", config, "--device", "cpu",
    )  # fmt: skip
    assert "expected at least 2 photos a batch and process, got 1" in again.stderr


@pytest.mark.parametrize("command", ["run-all", "learn-prompts"])
def test_what_one_process_does_is_refused_to_several(
    command: str, data_options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = ["--config", "voc"] if command == "run-all" else []
    refused = semples_refuses(command, tmp_path / "work", *data_options, *config)
    assert f"expected one process of {command}, got 2 under torchrun" in refused


@pytest.mark.slow
def test_run_all_then_again(tiny_config: Config, tiny_data: Path, data_options: list[object], tmp_path: Path) -> None:
    config, work, bundle = tmp_path / "tiny.yaml", tmp_path / "work", tmp_path / "bundle"
    config.write_text(dump_config(tiny_config))

    def run_all() -> list[str]:
        options = ["--config", config, "--output", bundle, "--device", "cpu", "--threads", 1]
        return semples_ok("run-all", work, *data_options, *options).splitlines()

    names = [
        "train-generator", "learn-prompts", "refine-generator", "make-pseudo-masks",
        "train-segmenter", "export-bundle", "report",
    ]  # fmt: skip
    *first, last = run_all()
    assert [line.partition(":")[0] for line in first] == names
    assert all(": written to " in line for line in first)
    empty = json.loads((work / "pseudo-masks" / "summary.json").read_text())["classes"].values()
    count = sum(len(each["empty"]) for each in empty)
    assert last.startswith(f"pseudo masks: {count} empty of 8 labels")
    page = (work / "report.html").read_text()
    assert page.count("<article>") == 6
    again = run_all()
    assert [line.partition(":")[0] for line in again] == [*names, "pseudo masks"]
    assert all(": done before, see " in line for line in again[:-3])

    # As a kill between the stages would leave it.
    version = semples("explain-prompts", bundle, "--json").stdout
    (work / "pseudo-masks" / "summary.json").unlink()
    (work / "train-segmenter" / "segmenter.safetensors").unlink()
    rest = run_all()
    assert [line.partition(":")[0] for line in rest if "written" in line] == names[3:]
    assert semples("explain-prompts", bundle, "--json").stdout == version

    # Another generator: its masks, and all that follows, are made anew.
    (work / "refine-generator" / "generator.safetensors").write_bytes(
        (work / "train-generator" / "generator.safetensors").read_bytes()
    )
    (work / "pseudo-masks" / "summary.json").unlink()
    rest = run_all()
    assert [line.partition(":")[0] for line in rest if "written" in line] == names[3:]

    # Other labels are another run.
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join((tiny_data / "labels.csv").read_text().splitlines()[:5]))
    other = semples_refuses(
        "run-all", work, "--images", tiny_data / "images", "--labels", labels, "--config", config,
        "--device", "cpu", "--classes", work / "classes.txt",
    )  # fmt: skip
    assert "expected the photos and labels that" in other

    trained = semples_ok(
        "train-segmenter", work, "--images", tiny_data / "images", "--masks", work / "pseudo-masks",
        "--min-alignment", "-0.2", "--device", "cpu",
    )  # fmt: skip
    assert "segmenter.safetensors" in trained
    semples_ok("segment", PHOTO, "--output", tmp_path / "out", "--bundle", bundle)
