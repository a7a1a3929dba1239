"""What of a user's folder is taken, and what is never overwritten."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data.classes import ClassInfo, ClassList, Sample
from models.data.images import ImageError
from models.data.mask_files import check_results, label_map_png, overlay_png, software_version
from models.data.mask_folder import MaskFolderWriter
from models.data.photo_files import find_photos, read_photo, refuse_foreign
from models.exports import new_folder
from models.io import write_atomically
from tests.helpers.service_fixtures import png

_MAP = np.zeros((2, 3), dtype=np.uint8)
_RECORD = {"image": "cat.jpg", "size": {}, "model": {}, "options": {}, "classes": []}
_OURS = {
    "cat.png": label_map_png(_MAP, text={"Software": "semples 0.1"}),
    "cat_overlay.png": overlay_png(np.zeros((2, 3, 3), dtype=np.uint8), _MAP),
    "cat.json": json.dumps(_RECORD).encode(),
    "report.html": b'<!doctype html><meta name="generator" content="semples 0.1">',
}
_FOREIGN = {
    "cat.png": png(),
    "cat_overlay.png": label_map_png(_MAP, text={"Software": "GIMP"}),
    "cat.json": b'{"shapes": [], "imagePath": "cat.jpg"}',
    "report.html": b"<!doctype html><title>mine</title>",
    "cat.txt": b"0 0.5 0.5 1 1",
    "damaged.png": b"\x89PNG\r\n\x1a\n",
    "odd.json": b"[1, 2]",
    "not utf-8.json": b"\xff",
}


def test_our_own_files_may_be_written_again(tmp_path: Path) -> None:
    for name, content in _OURS.items():
        (tmp_path / name).write_bytes(content)
    refuse_foreign([*tmp_path.iterdir(), tmp_path / "new.png"], overwrite=False)


@pytest.mark.parametrize("name", _FOREIGN)
def test_files_of_others_are_named_and_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(_FOREIGN[name])
    with pytest.raises(ValueError, match=rf"--overwrite.*{name}"):
        refuse_foreign([tmp_path / name], overwrite=False)
    refuse_foreign([tmp_path / name], overwrite=True)


def test_links_and_folders_of_others(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("nowhere")
    (tmp_path / "b.png").mkdir()
    for name in ("a.png", "b.png"):
        with pytest.raises(ValueError, match=name):
            refuse_foreign([tmp_path / name], overwrite=False)


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
        write_atomically(folder / "masks/cat.png", _OURS["cat.png"])
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
    assert Image.open(io.BytesIO(_OURS["cat_overlay.png"])).info["Software"] == f"semples {software_version()}"
