"""A folder of photos through the real service: what is written, and what is sent again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.data.classes import read_class_list
from models.data.mask_folder import open_mask_folder, read_mask_folder, read_results
from models.evaluation.metrics import evaluate_label_maps, matching_files
from service.client import Client
from service.client.folder import latest
from tests.helpers.client_fixtures import make_photos
from tests.helpers.service_fixtures import Place, WorkerProcess, wait_for

pytestmark = pytest.mark.usefixtures("worker")  # each test finds a live worker

LABELS = {
    "a.png": "cat",
    "sub/b.png": "kitty;bowl",
    "c.png": "",
    "d.png": "dining table",
    "e.png": "bowl",
}


@pytest.fixture(autouse=True, scope="module")
def nothing_left_behind(place: Place, running_worker: WorkerProcess) -> Iterator[None]:
    del running_worker
    yield
    wait_for(lambda: not any(place.leftovers().values()), what="an empty queue")


def posts(place: Place) -> int:
    """How many jobs were ever queued, by their events."""
    return len(place.redis.keys("semples:events:*"))


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_folder_as_the_command_line_lays_it_out(
    client: Client, api: httpx.Client, tmp_path: Path
) -> None:
    labels = make_photos(tmp_path, LABELS, shade=101)
    heard: list[tuple[int, int, int]] = []
    output = tmp_path / "out"
    outcome = client.batch(
        *(tmp_path / "images", labels, output),
        save_scores=True,
        on_photo=lambda *news: heard.append(news),
        min_confidence=0.3,
    )
    assert (outcome.made, outcome.kept, outcome.empty, outcome.failed) == (4, 0, 0, ())
    assert heard == [(number, 0, 4) for number in range(5)]
    assert set(files(output)) == {
        *(f"masks/{stem}.png" for stem in "abde"),
        *(f"scores/{stem}.npz" for stem in "abde"),
        *("classes.txt", "results.jsonl", "settings.json", "summary.json"),
    }
    same = client.pseudo_mask(
        tmp_path / "images" / "sub" / "b.png", ["cat", "bowl"], min_confidence=0.3
    )
    assert (output / "masks" / "b.png").read_bytes() == same.png
    assert (output / "scores" / "b.npz").read_bytes() == api.get(
        f"/jobs/{same.job_id}/scores.npz"
    ).content
    record = read_results(output / "results.jsonl")["b"]
    assert record["image"] == "sub/b.png"
    assert record["size"] == {"width": 30, "height": 20}
    assert record["options"] == {
        "refine": "none",
        "min_confidence": 0.3,
        "background_threshold": 0.4,
        "background_power": None,
        "class_thresholds": {"bowl": 0.6},
    }
    assert [each["name"] for each in record["classes"]] == ["cat", "bowl"]
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["images"], summary["masks"], summary["unlabeled"]) == (5, 4, 1)
    assert summary["classes"]["bowl"]["images"] == 2
    assert summary["classes"]["bowl"]["mean_area"] == pytest.approx((1 / 3 + 1 / 2) / 2, abs=0.1)


def test_other_commands_take_it(client: Client, tmp_path: Path) -> None:
    labels = make_photos(tmp_path, LABELS, shade=102)
    images, output = tmp_path / "images", tmp_path / "out"
    client.batch(images, labels, output)
    classes = read_class_list(output / "classes.txt")
    pairs = matching_files(output / "masks", output / "masks", ".png")
    report = evaluate_label_maps(pairs, classes, min_pixels=0, on_image=lambda: None)
    assert report.mean_iou == 1
    assert len(list(open_mask_folder(output, images).photos())) == 4
    [first, *_] = read_mask_folder(images, output, classes)
    assert set(np.unique(first.read_mask())) == {0, 1}


def test_what_is_done_is_not_sent_again(client: Client, place: Place, tmp_path: Path) -> None:
    labels = make_photos(tmp_path, LABELS, shade=103)
    where = (tmp_path / "images", labels, tmp_path / "out")
    client.batch(*where)
    whole = files(tmp_path / "out")
    before = posts(place)
    again = client.batch(*where)
    assert (again.made, again.kept) == (0, 4)
    assert files(tmp_path / "out") == whole
    # A mask that is lost, a record that a kill has cut, labels that have changed.
    (tmp_path / "out" / "masks" / "a.png").unlink()
    results = tmp_path / "out" / "results.jsonl"
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:-1]) + '{"stem": "')
    cut = json.loads(whole["results.jsonl"].decode().splitlines()[-1])["stem"]
    changed = labels.read_text().replace("d.png,dining table", "d.png,cat")
    labels.write_text(changed)
    again = client.batch(*where)
    assert (again.made, again.kept) == (len({"a", "d", cut}), 4 - len({"a", "d", cut}))
    assert posts(place) == before + 1  # but for the new label all jobs were known
    assert [each["name"] for each in dict(latest(results))["d"]["classes"]] == ["cat"]
    assert files(tmp_path / "out")["masks/a.png"] == whole["masks/a.png"]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"background_threshold": 0.7}, "options.background_threshold: 0.4 before, 0.7 now"),
        ({"refine": "pamr"}, "options.refine: 'none' before, 'pamr' now"),
        ({"save_scores": True}, "scores: False before, True now"),
    ],
)
def test_other_settings_are_refused(
    client: Client, tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    labels = make_photos(tmp_path, {"a.png": "cat"}, shade=104)
    where = (tmp_path / "images", labels, tmp_path / "out")
    client.batch(*where)
    whole = files(tmp_path / "out")
    with pytest.raises(
        ValueError, match=f"expected .*out to be new or made with .* got {difference}"
    ):
        client.batch(*where, **change)
    assert files(tmp_path / "out") == whole
    assert client.batch(*where, model="double").kept == 1


def test_bad_photos_are_noted(client: Client, tmp_path: Path) -> None:
    labels = {
        "a.png": "cat",
        "bad.png": "cat",
        "broken.png": "bowl",
        "fails.png": "raises",
        "z.png": "cat",
    }
    table = make_photos(tmp_path, labels, shade=105)
    images = tmp_path / "images"
    (images / "bad.png").write_bytes(b"no image")
    good = (images / "broken.png").read_bytes()
    (images / "broken.png").write_bytes(good[:50])
    where = (images, table, tmp_path / "out")
    outcome = client.batch(*where, concurrency=2)
    assert outcome.made == 2
    reasons = dict(outcome.failed)
    assert set(reasons) == {"bad.png", "broken.png", "fails.png"}
    assert "JPEG, PNG or WebP" in reasons["bad.png"]
    assert "cannot read the image" in reasons["broken.png"]
    assert "secret" not in reasons["fails.png"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {each["image"]: each["reason"] for each in summary["failed"]} == reasons
    # Mended, they are all that is sent.
    (images / "broken.png").write_bytes(good)
    again = client.batch(*where)
    assert (again.made, again.kept, len(again.failed)) == (1, 2, 2)
