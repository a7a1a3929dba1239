"""What bad input gets through ``semples predict``: a right answer, or one line and exit code 2."""

import io
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.cli import main
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
    "empty.jpg": (b"", "cannot read the image"),
    "huge.png": (huge_png(), "expected at most 40000000 pixels"),
    "moving.png": (
        encoded(FRAMES[0], save_all=True, append_images=FRAMES[1:]),
        "expected a still image",
    ),
    "moving.gif": (encoded(FRAMES[0], "GIF"), "JPEG, PNG or WebP"),
}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["semples", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", GOOD)
def test_odd_photos_get_a_mask(
    name: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(GOOD[name])
    out = tmp_path / "out"
    options = ["--labels", "cat", "--output", out, "--bundle", tiny_bundle]
    assert run(monkeypatch, "predict", tmp_path / name, *options) == 0
    with Image.open(tmp_path / name) as photo, Image.open(out / f"{Path(name).stem}.png") as mask:
        assert mask.size == photo.size


@pytest.mark.parametrize("name", BAD)
def test_bad_photos_get_one_line(
    name: str,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    options = ["--labels", "cat", "--output", tmp_path / "out", "--bundle", tiny_bundle]
    assert run(monkeypatch, "predict", tmp_path / name, *options) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
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
    ],
)
def test_bad_options_get_one_line(
    options: list[str],
    message: str,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    given = [*options, "--output", tmp_path / "out", "--bundle", tiny_bundle]
    assert run(monkeypatch, "predict", PHOTO, *given) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_the_photo_itself_is_never_overwritten(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = tmp_path / "cat.png"
    photo.write_bytes(GOOD["palette.png"])
    options = ["--labels", "cat", "--output", tmp_path, "--bundle", tiny_bundle]
    assert run(monkeypatch, "predict", photo, *options) == 2
    assert photo.read_bytes() == GOOD["palette.png"]


def test_a_folder_is_not_a_photo(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--labels", "cat", "--output", tmp_path / "out", "--bundle", tiny_bundle]
    assert run(monkeypatch, "predict", tmp_path, *options) == 2
