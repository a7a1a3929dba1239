"""Odd file names through ``semples submit``, and what it does not overwrite."""

import json
from pathlib import Path

import httpx
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from models.messages import printable
from service.client.cli import main
from tests.helpers.odd_names import is_utf8, odd_stems
from tests.helpers.posting import new_photo

pytestmark = pytest.mark.usefixtures("worker")

_STEMS = odd_stems()[::7]


def _submit(api: httpx.Client, *arguments: object) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    return CliRunner().invoke(app, [*map(str, arguments), "--to", str(api.base_url)])


def test_a_folder_of_odd_names(api: httpx.Client, tmp_path: Path) -> None:
    photos, output = tmp_path / "a b::c", tmp_path / "out\nput"
    photos.mkdir()
    for stem in _STEMS:
        (photos / f"{stem}.jpg").write_bytes(new_photo())
    images = [
        {"id": number, "file_name": f"{stem}.jpg", "width": 30, "height": 20}
        for number, stem in enumerate(_STEMS, start=1)
    ]
    box = {"category_id": 1, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0, "segmentation": [[0, 0, 1, 0, 1, 1]]}
    marks = [{**box, "id": each["id"], "image_id": each["id"]} for each in images]
    labels = tmp_path / "labels.json"
    content = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": marks}
    labels.write_text(json.dumps(content))
    done = _submit(api, photos, "--labels", labels, "--output", output)
    good = [stem for stem in _STEMS if is_utf8(stem)]
    assert f"{len(good)} masks made" in done.output
    assert all((output / "masks" / f"{stem}.png").is_file() for stem in good)
    assert all(f"{printable(stem)}.jpg: " in done.output for stem in _STEMS if stem not in good)
    assert done.exit_code == int(len(good) < len(_STEMS))


@pytest.mark.parametrize("name", ["a b.jpg", 'q"u;o.jpg', "new\nline.jpg", "[red].png", "日本 %s.webp"])
def test_a_photo_of_an_odd_name(name: str, api: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(new_photo())
    done = _submit(api, tmp_path / name, "--labels", "cat", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / f"{Path(name).stem}.json").read_text())["image"] == name


def test_a_name_that_is_not_utf8(api: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.jpg").write_bytes(new_photo())
    done = _submit(api, tmp_path / "caf\udce9.jpg", "--labels", "cat", "--output", tmp_path / "out")
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert r"caf\xe9.jpg" in done.output


def test_annotations_of_others_are_kept(api: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(new_photo())
    (tmp_path / "cat.json").write_text('{"shapes": []}')
    command = (tmp_path / "cat.jpg", "--labels", "cat", "--output", tmp_path)
    refused = _submit(api, *command)
    assert refused.exit_code == 2
    assert "cat.json" in refused.output
    assert (tmp_path / "cat.json").read_text() == '{"shapes": []}'
    assert not (tmp_path / "cat.png").exists()
    assert _submit(api, *command, "--overwrite").exit_code == 0
    assert _submit(api, *command).exit_code == 0  # ours now
