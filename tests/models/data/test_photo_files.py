"""What of a user's folder is taken, and what is never overwritten."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data.classes import ClassInfo, ClassList, Sample
from models.data.images import ImageError
from models.data.mask_files import check_results, label_map_png, overlay_png, software_version
from models.data.mask_folder import MaskFolderWriter
from models.data.photo_files import find_photos, read_photo
from models.data.photos import SameNameError, mask_names
from models.exports import new_folder
from models.io import write_atomically
from tests.helpers.service_fixtures import png

_MAP = np.zeros((2, 3), dtype=np.uint8)
_RECORD = {"image": "cat.jpg", "size": {}, "model": {}, "options": {}, "classes": []}


@pytest.mark.parametrize(
    ("photos", "message"),
    [
        (["cat.png"], "keeps .*cat.png"),
        (["cat.jpg", "cat_overlay.png"], "keeps .*cat_overlay.png"),
        (["cat.jpg", "cat_overlay.jpg"], "results have different names"),
    ],
)
def test_results_keep_the_photos_and_each_other(photos: list[str], message: str, tmp_path: Path) -> None:
    for name in photos:
        (tmp_path / name).write_bytes(png())
    with pytest.raises(ValueError, match=message):
        check_results(tmp_path, [tmp_path / name for name in photos], overwrite=True)


@pytest.mark.parametrize(
    ("photos", "names"),
    [
        (["a.jpg", "s/b.jpg", "dots.in.it.png"], ["a", "b", "dots.in.it"]),
        (["cats/1.jpg", "dogs/1.jpg", "dogs/2.jpg"], ["cats__1", "dogs__1", "2"]),
        (["1.jpg", "dogs/1.png", "a/b/1.jpg"], ["1", "dogs__1", "a__b__1"]),
        (["s/A.jpg", "t/a.jpg"], ["s__A", "t__a"]),
        (["s/caf\u00e9.jpg", "t/cafe\u0301.jpg"], ["s__caf\u00e9", "t__cafe\u0301"]),
    ],
)
def test_masks_are_named_after_photos(photos: list[str], names: list[str]) -> None:
    assert mask_names(photos) == dict(zip(photos, names, strict=True))


@pytest.mark.parametrize(
    "photos",
    [
        ["a.jpg", "a.png"],
        ["s/a.jpg", "s/A.jpg"],
        ["s/caf\u00e9.jpg", "s/cafe\u0301.jpg"],
        ["s/a.jpg", "S/a.jpg"],
        ["s/a.jpg", "t/a.jpg", "s__a.png"],
        ["a.jpg", "a.jpg"],
    ],
)
def test_masks_that_would_be_one_file(photos: list[str]) -> None:
    with pytest.raises(SameNameError, match="expected photos whose results have different names") as caught:
        mask_names(photos)
    assert caught.value.photo == photos[-1]


def test_photos_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "._a.jpg", ".hidden.png", "notes.txt", "cat.json"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    assert [path.name for path in find_photos([tmp_path])] == ["a.PNG", "b.jpg"]
    assert find_photos([tmp_path / "._a.jpg"])  # asked for by name
    with pytest.raises(ValueError, match="got none"):
        find_photos([tmp_path / "folder.jpg"])


@pytest.mark.parametrize(("name", "shown"), [("caf\udce9.jpg", r"caf\xe9.jpg"), ("\udcff\n.jpg", r"\xff\n.jpg")])
def test_a_name_that_is_not_utf8_is_shown_escaped(name: str, shown: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(png())
    with pytest.raises(ImageError) as error:
        read_photo(tmp_path / name)
    assert str(error.value) == f"expected a file name in UTF-8, got {shown}"


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    name = "x" * 251 + ".png"
    write_atomically(tmp_path / name, b"content")
    assert [path.name for path in tmp_path.iterdir()] == [name]


_CLASSES = ClassList((ClassInfo(1, "cat"),))
_SETTINGS = {"model": {"name": "m", "version": "1"}, "options": {"refine": "none"}, "scores": False}


def _writer(folder: Path, *, overwrite: bool = False, refine: str = "none") -> MaskFolderWriter:
    samples = [Sample(folder.parent / "cat.jpg", (0,), folder.parent)]
    settings = {**_SETTINGS, "options": {"refine": refine}}
    return MaskFolderWriter(folder, samples, _CLASSES, settings, overwrite=overwrite)


@pytest.mark.parametrize("name", ["classes.txt", "results.jsonl", "summary.json", "settings.json", "masks/cat.png"])
def test_a_mask_folder_among_files_of_others(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_atomically(folder / name, png() if name.endswith("png") else b'{"mine": 1}\n')
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=f"--overwrite.*{name}"):
        _writer(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    with _writer(folder, overwrite=True) as writer:
        assert [each.name for each in writer.todo] == ["cat.jpg"]


def test_a_mask_folder_of_other_options_is_made_anew_if_asked(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    record = {**_RECORD, "classes": [{"name": "cat", "index": 1, "box": None}]}
    with _writer(folder) as writer:
        write_atomically(folder / "masks/cat.png", label_map_png(_MAP))
        writer.add(writer.todo[0], record)
    with _writer(folder) as writer:
        assert writer.kept == 1
    with pytest.raises(ValueError, match="same model and options"):
        _writer(folder, refine="pamr")
    with _writer(folder, refine="pamr", overwrite=True) as writer:
        assert (writer.kept, len(writer.todo)) == (0, 1)


def _write(folder: Path, names: list[str], content: str) -> None:
    for name in names:
        write_atomically(folder / name, content.encode())


@pytest.mark.parametrize("fill", [lambda path: path.mkdir(), lambda _: None])
def test_an_export_into_a_folder_that_is_not_empty(fill: Callable[[Path], object], tmp_path: Path) -> None:
    target = tmp_path / "export"
    fill(target)
    with new_folder(target) as new:
        _write(new, ["a.txt", "in/b.txt"], "first")
    with pytest.raises(ValueError, match="--overwrite"), new_folder(target):
        pass
    _write(target, ["mine.txt"], "mine")
    with new_folder(target, overwrite=True) as new:
        _write(new, ["a.txt", "in/c.txt"], "second")
    found = {str(path.relative_to(target)): path.read_text() for path in target.rglob("*.txt")}
    assert found == {"a.txt": "second", "in/b.txt": "first", "in/c.txt": "second", "mine.txt": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_overlays_say_who_made_them() -> None:
    overlay = overlay_png(np.zeros((2, 3, 3), dtype=np.uint8), _MAP)
    assert Image.open(io.BytesIO(overlay)).info["Software"] == f"semples {software_version()}"
