"""A folder of images through the service: its files, what continues them, what is refused."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
import torch

from models.bundle.bundle import load_bundle
from models.data.classes import read_class_list
from models.data.labels import read_folder
from models.data.mask_files import label_map_png
from models.data.mask_folder import open_mask_folder, read_mask_folder, read_results
from models.evaluation.metrics import _evaluate_label_maps, _matching_files
from models.inference.folder import MaskJob, make_here, make_pseudo_masks
from models.inference.predictor import Predictor
from service.client import AsyncClient, Client, InvalidRequest, Unavailable
from tests.helpers.client_fixtures import Script, make_photos, problem
from tests.helpers.service_fixtures import Place, WorkerProcess, http_api, wait_for
from tests.service.local.test_bundle import serving_bundle

pytestmark = pytest.mark.usefixtures("worker")  # each test finds a live worker

LABELS = {**{"a.png": "cat", "sub/b.png": "kitty;bowl", "c.png": ""}, **{"d.png": "dining table", "e.png": "bowl"}}


@pytest.fixture(autouse=True, scope="module")
def nothing_left_behind(place: Place, running_worker: WorkerProcess) -> Iterator[None]:
    yield
    wait_for(lambda: not any(place.leftovers().values()), what="an empty queue")


def posts(place: Place) -> int:
    """How many jobs were ever queued, by their events."""
    return len(place.redis.keys("semples:events:*"))


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_folder_as_the_command_line_lays_it_out(client: Client, api: httpx.Client, tmp_path: Path) -> None:
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
    same = client.pseudo_mask(tmp_path / "images" / "sub" / "b.png", ["cat", "bowl"], min_confidence=0.3)
    assert (output / "masks" / "b.png").read_bytes() == same.png
    scores = api.get(f"/jobs/{same.job_id}/scores.npz").content
    assert (output / "scores" / "b.npz").read_bytes() == scores
    record = read_results(output / "results.jsonl")["b"]
    assert record["image"] == "sub/b.png"
    assert record["size"] == {"width": 30, "height": 20}
    assert record["options"] == {
        "refine": "none",
        "min_confidence": 0.3,
        "background_threshold": 0.4,
        "background_power": None,
        "class_thresholds": {"bowl": 0.6},
        "threshold_slope": 0.0,
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
    truth = shutil.copytree(output / "masks", tmp_path / "truth")
    pairs = _matching_files(output / "masks", truth, ".png")
    report = _evaluate_label_maps(pairs, classes, min_pixels=0, on_image=lambda: None)
    assert report.mean_iou == 1
    assert len(list(open_mask_folder(output, images).masked_images())) == 4
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
    assert [each["name"] for each in read_results(results)["d"]["classes"]] == ["cat"]
    assert files(tmp_path / "out")["masks/a.png"] == whole["masks/a.png"]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"background_threshold": 0.7}, "options.background_threshold: 0.4 before, 0.7 now"),
        ({"refine": "pamr"}, "options.refine: 'none' before, 'pamr' now"),
        ({"save_scores": True}, "scores: False before, True now"),
    ],
)
def test_other_settings_are_refused(client: Client, tmp_path: Path, change: dict[str, Any], difference: str) -> None:
    labels = make_photos(tmp_path, {"a.png": "cat"}, shade=104)
    where = (tmp_path / "images", labels, tmp_path / "out")
    client.batch(*where)
    whole = files(tmp_path / "out")
    message = f"expected .*out to be new or made with .* got {difference}"
    with pytest.raises(ValueError, match=message):
        client.batch(*where, **change)
    assert files(tmp_path / "out") == whole
    assert client.batch(*where, model="double").kept == 1


def test_bad_photos_are_noted(client: Client, tmp_path: Path) -> None:
    labels = {"broken.png": "bowl", "fails.png": "raises"}
    labels |= dict.fromkeys(("a.png", "bad.png", "z.png"), "cat")
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


def test_it_waits_for_room(place: Place, tmp_path: Path) -> None:
    """With places for one job and for a few posts a second, a service is well, and no retry is used up."""
    labels = make_photos(tmp_path, {f"{number}.png": "cat" for number in range(9)}, shade=106)
    with http_api(place, max_queue=1, rate="4/second") as api:
        outcomes = []

        async def run() -> None:
            async with AsyncClient(str(api.base_url), retries=0, sleep=doze) as client:
                outcomes.append(await client.batch(tmp_path / "images", labels, tmp_path / "out", concurrency=8))

        pauses: list[float] = []

        async def doze(seconds: float) -> None:
            pauses.append(seconds)
            await anyio.sleep(0.05)

        anyio.run(run)
    assert outcomes[0].made == 9
    assert min(pauses) >= 1


def test_a_service_that_goes_away_ends_it_and_it_goes_on(place: Place, tmp_path: Path) -> None:
    labels = make_photos(tmp_path, {f"{number}.png": "cat" for number in range(6)}, shade=107)
    where = (tmp_path / "images", labels, tmp_path / "out")
    with http_api(place) as api, Client(str(api.base_url), retries=0) as client:

        class Leaves(httpx.AsyncHTTPTransport):
            left = 3

            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                if request.method == "POST":
                    self.left -= 1
                if self.left < 0:
                    raise httpx.ConnectError("gone")
                return await super().handle_async_request(request)

        async def run() -> None:
            async with AsyncClient(str(api.base_url), retries=0, transport=Leaves()) as leaving:
                await leaving.batch(*where, concurrency=1)

        with pytest.raises(Unavailable, match="cannot reach the service: gone"):
            anyio.run(run)
        assert len(read_results(tmp_path / "out" / "results.jsonl")) == 3
        assert not (tmp_path / "out" / "summary.json").exists()
        outcome = client.batch(*where)
        assert (outcome.made, outcome.kept) == (3, 3)


def test_cancellation_leaves_what_can_be_continued(api: httpx.Client, tmp_path: Path) -> None:
    labels = make_photos(tmp_path, {"a.png": "cat", "b.png": "slow", "c.png": "bowl"}, shade=108)
    where = (tmp_path / "images", labels, tmp_path / "out")

    async def run() -> None:
        async with AsyncClient(str(api.base_url)) as client:
            with anyio.CancelScope() as scope:
                await client.batch(*where, concurrency=1, on_photo=lambda done, *_: scope.cancel() if done else None)
            assert scope.cancelled_caught
            assert not (tmp_path / "out" / "summary.json").exists()
            outcome = await client.batch(*where)
            assert (outcome.made, outcome.kept) == (2, 1)

    anyio.run(run)


DEFAULTS = {"refine": "none", "min_confidence": 0.0, "background_threshold": 0.4}
MODEL = {"name": "double", "version": "1", "classes": [{"index": 1, "name": "cat"}], **DEFAULTS}
MODELS = {**{"default": "double", "default_segment": None}, "models": [{"ready": True, "model": MODEL}]}


MASK = httpx.Response(200, content=label_map_png(np.zeros((2, 3), np.uint8)))


def finished(version: str) -> httpx.Response:
    return httpx.Response(
        200,
        json={
            **{"id": "0" * 32, "task": "pseudo_mask", "status": "finished", "labels": ["cat"]},
            "model": {"name": "double", "version": version},
            "options": {**DEFAULTS, "of_tomorrow": 1},
            "image": {"width": 3, "height": 2, "exif_orientation": 1},
            "classes": [{"index": 1, "name": "cat", "area": 0.0}],
        },
    )


def batch_of_one(tmp_path: Path, *answers: httpx.Response, **options: Any) -> Any:
    labels = make_photos(tmp_path, {"a.png": "cat", "b.png": "cat"}, shade=110)
    script = Script(httpx.Response(200, json=MODELS), *answers)

    async def run() -> Any:
        async with AsyncClient("http://host", transport=script, retries=0) as client:
            return await client.batch(tmp_path / "images", labels, tmp_path / "out", **options)

    return anyio.run(run)


def test_masks_of_another_model_are_not_mixed(tmp_path: Path) -> None:
    message = "expected masks of double 1, got double 2: the service has another model now"
    with pytest.raises(ValueError, match=message):
        batch_of_one(tmp_path, finished("1"), MASK, finished("2"), MASK, concurrency=1)
    assert list(read_results(tmp_path / "out" / "results.jsonl")) == ["a"]


def test_an_error_of_our_service_is_one_photos_but_a_wrong_option_is_not(tmp_path: Path) -> None:
    answers = (problem(500, "internal-error", "a bug"), finished("1"), MASK)
    outcome = batch_of_one(tmp_path, *answers, concurrency=1)
    assert (outcome.made, outcome.empty, outcome.failed) == (1, 1, (("a.png", "a bug"),))
    with pytest.raises(InvalidRequest, match="no"):
        batch_of_one(tmp_path, problem(422, "invalid-request"), concurrency=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "other"}, r"expected a model of the service \(double\), got other"),
        ({"concurrency": 0}, "expected at least one photo in flight, got 0"),
        ({"background_threshold": 3}, r"expected background_threshold in \(0, 1\), got 3"),
        ({"refine": "nonsense"}, "nonsense"),
    ],
)
def test_what_cannot_begin(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_of_one(tmp_path, **options)
    assert not (tmp_path / "out").exists()


def test_photos_are_not_overwritten(tmp_path: Path) -> None:
    labels = make_photos(tmp_path, {"a.png": "cat"}, shade=111)
    (tmp_path / "images").rename(tmp_path / "masks")
    script = Script(httpx.Response(200, json=MODELS))

    async def run() -> None:
        async with AsyncClient("http://host", transport=script) as client:
            await client.batch(tmp_path / "masks", labels, tmp_path)

    with pytest.raises(ValueError, match="expected an output folder that keeps the images"):
        anyio.run(run)


def test_a_folder_through_a_service_is_the_command_lines(tiny_bundle: Path, tiny_data: Path, tmp_path: Path) -> None:
    predictor = Predictor(load_bundle(tiny_bundle, device=torch.device("cpu")))
    samples = read_folder(tiny_data / "images", tiny_data / "labels.csv", predictor.info.classes)
    here, there = tmp_path / "here", tmp_path / "there"
    job = MaskJob(here, predictor.options(refine="pamr", min_confidence=0.1), save_scores=True)
    make = partial(make_here, predictor, job)
    make_pseudo_masks(predictor.info, samples, job, make, on_image=lambda: None)

    where = (tiny_data / "images", tiny_data / "labels.csv", there)
    with serving_bundle(tiny_bundle, tmp_path / "data") as stack, Client(stack.url) as client:
        send = partial(client.batch, *where, save_scores=True, refine="pamr", min_confidence=0.1)
        assert send().made == len(samples)
        # The command line goes on with what the service made, and the other way round.
        job = MaskJob(there, job.options, save_scores=True)
        nothing = partial(make_pseudo_masks, make=lambda _: iter(()), on_image=lambda: None)
        outcome = nothing(predictor.info, samples, job)
        assert (outcome.made, outcome.kept) == (0, len(samples))
        where = (*where[:2], here)
        send = partial(client.batch, *where, save_scores=True, refine="pamr", min_confidence=0.1)
        assert send().kept == len(samples)

    for name in ("settings.json", "classes.txt"):
        assert (there / name).read_bytes() == (here / name).read_bytes()
    for sample in samples:
        mask = f"masks/{sample.stem}.png"
        assert (there / mask).read_bytes() == (here / mask).read_bytes()
        assert (there / "scores" / f"{sample.stem}.npz").is_file()
    made, known = (read_results(each / "results.jsonl") for each in (there, here))
    assert close(made) == close(known)
    summaries = [json.loads((each / "summary.json").read_text()) for each in (there, here)]
    assert close(summaries[0]) == close(summaries[1])


def close(value: Any) -> Any:
    """The same with room for rounding."""
    if isinstance(value, dict):
        return {key: close(each) for key, each in value.items()}
    if isinstance(value, list):
        return [close(each) for each in value]
    return pytest.approx(value, abs=1e-3) if isinstance(value, float) else value
