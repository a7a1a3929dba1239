"""Batches from the zip to the masks with a real app, Valkey, worker and janitor: items, events, report, archives."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torchvision.datasets import VOCSegmentation

from models.exports.coco import POLYGON_FILE, RLE_FILE
from service.local.supervisor import Child
from tests.helpers.batches import accepted, ended, items, many, packed, post, rows, runs
from tests.helpers.export_folder import reader
from tests.helpers.posting import new_photo, wait_for_status
from tests.helpers.posting import post as post_image
from tests.helpers.service_doubles import NAMES
from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, wait_for
from worker.batches.store import KNOWN_KEY, OPEN_KEY
from worker.queue.rq import fetch_job

pytestmark = [
    pytest.mark.usefixtures("nothing_left_behind"),
    # pycocotools' decoder itself: its arrays do not take numpy 2's copy argument.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

LabelMap = NDArray[np.uint8]


def test_all_photos_get_masks(api: httpx.Client) -> None:
    files = {
        "labels.csv": rows({"a.png": "cat", "street/b.jpg": "bowl;kitty", "c.webp": "dining_table"}),
        "a.png": new_photo(),
        "street/b.jpg": new_photo(width=40),
        "c.webp": new_photo(),
        "readme.md": "not looked at",
        "__MACOSX/._a.png": b"\0",
        ".DS_Store": b"\0",
    }
    answer = post(api, packed(files))
    assert answer.status_code == 202
    first = answer.json()
    assert first["counts"]["total"] == 3
    path = first["links"]["self"]
    assert first["links"]["archive"] == f"{path}/archive.zip"
    assert first["model"] == {"name": "double", "version": "0123456789ab"}

    document = ended(api, path)
    assert document["status"] == "finished"
    assert document["counts"]["finished"] == 3
    assert document["created_at"] < document["ended_at"]
    found = items(api, path)
    assert [each["number"] for each in found] == [1, 2, 3]
    assert [each["image"] for each in found] == ["a.png", "street/b.jpg", "c.webp"]
    assert [each["labels"] for each in found] == [["cat"], ["cat", "bowl"], ["dining table"]]
    assert all(each["status"] == "finished" and each["problem"] is None for each in found)
    mask = api.get(f"/jobs/{found[1]['job']}/mask.png").content
    assert np.unique(np.asarray(Image.open(io.BytesIO(mask)))).tolist() == [0, 1, 2]


def test_a_job_is_the_same_as_if_its_photo_was_posted_alone(api: httpx.Client) -> None:
    one = new_photo()
    path = accepted(api, packed({"labels.csv": rows({"a.png": "bowl;cat"}), "a.png": one}))
    ended(api, path)
    alone = post_image(api, one, "cat,bowl").json()
    assert [each["job"] for each in items(api, path)] == [alone["id"]]
    assert alone["status"] == "finished"
    assert alone["options"]["class_thresholds"] == {"bowl": 0.6}


def test_photos_that_fail_say_why_and_the_others_go_on(api: httpx.Client) -> None:
    labels = {"good.png": "cat", "cut.png": "cat", "text.png": "cat", "bad.png": "raises", "e.png": ""}
    files = {
        "labels.csv": rows(labels),
        "good.png": new_photo(),
        "cut.png": new_photo(width=200)[:100],
        "text.png": b"no picture",
        "bad.png": new_photo(),
        "e.png": new_photo(),
        "unsaid.png": new_photo(),
    }
    path = accepted(api, packed(files))
    document = ended(api, path)
    assert document["status"] == "finished"
    assert (document["counts"]["finished"], document["counts"]["failed"]) == (1, 5)
    failed = {each["image"]: each for each in items(api, path, status="failed", limit=2)}
    codes = {image: each["problem"]["code"] for image, each in failed.items()}
    assert codes == {
        "cut.png": "image_unreadable",
        "text.png": "image_unreadable",
        "bad.png": "model_error",
        "e.png": "no_labels",
        "unsaid.png": "no_labels",
    }
    assert failed["text.png"]["problem"]["title"] == "Image unreadable"
    assert "JPEG, PNG or WebP" in failed["text.png"]["problem"]["detail"]
    assert failed["text.png"]["job"] is None
    assert api.get(f"/jobs/{failed['bad.png']['job']}").json()["status"] == "failed"


def test_the_same_zip_is_the_same_batch_and_reruns_transient_failures(api: httpx.Client, place: Place) -> None:
    files = {
        "labels.csv": rows({"a.png": "cat", "b.png": "raises", "c.png": "cat"}),
        **{"a.png": new_photo(), "b.png": new_photo(), "c.png": b"no picture"},
    }
    path = accepted(api, packed(files))
    ended(api, path)
    before = {each["image"]: each for each in items(api, path)}

    assert accepted(api, packed(files)) == path
    again = lambda: runs(place, before["b.png"]["job"]) == 0 or ended(api, path)  # noqa: E731
    wait_for(again)
    document = ended(api, path)
    assert (document["counts"]["finished"], document["counts"]["failed"]) == (1, 2)
    assert runs(place, before["a.png"]["job"]) == 1
    assert {each["image"]: each for each in items(api, path)} == before

    assert accepted(api, packed(files), background_threshold="0.3") != path
    assert accepted(api, packed({**files, "c.png": new_photo()})) != path


def test_a_photo_that_is_posted_alone_too_survives_a_canceled_batch(api: httpx.Client) -> None:
    one = new_photo()
    alone = post_image(api, one, "slow").json()
    path = accepted(api, packed({"labels.csv": rows({"a.png": "slow"}), "a.png": one}))
    wait_for(lambda: api.get(path).json()["counts"]["waiting"] == 0, what="the dispatch")
    assert api.delete(path).json()["status"] == "canceled"
    job = f"/jobs/{alone['id']}"
    assert wait_for_status(api, job, "finished", "canceled")["status"] == "finished"


def test_canceled_in_the_middle_it_goes_on_when_it_is_posted_again(api: httpx.Client, place: Place) -> None:
    quick = {f"{n}.png": new_photo() for n in range(4)}
    slow = {f"{n}.png": new_photo(width=40 + n) for n in range(4, 7)}  # one after the other
    labels = {**dict.fromkeys(quick, "cat"), **dict.fromkeys(slow, "slow")}
    archive = packed({"labels.csv": rows(labels), **quick, **slow})
    path = accepted(api, archive)
    wait_for(lambda: api.get(path).json()["counts"]["finished"] >= 4, what="the first")
    assert api.get(path).json()["status"] == "running"
    assert api.get(f"{path}/archive.zip").status_code == 409

    document = api.delete(path).json()
    assert document["status"] == "canceled"
    done = document["counts"]["finished"]
    assert 4 <= done < 7
    assert document["counts"]["canceled"] == 7 - done
    wait_for(lambda: place.leftovers() == NOTHING, what="the end of the jobs")
    assert ended(api, path)["counts"]["finished"] == done
    first = {each["number"] for each in items(api, path, status="finished")}

    assert accepted(api, archive) == path
    document = ended(api, path)
    assert (document["status"], document["counts"]["finished"]) == ("finished", 7)
    found = items(api, path)
    assert all(runs(place, each["job"]) == 1 for each in found if each["number"] in first)

    assert api.delete(path).status_code == 204
    assert api.get(path).status_code == 404
    assert api.delete(path).status_code == 204


def test_events_are_replayed_and_end(api: httpx.Client) -> None:
    path = accepted(api, packed(many(10)))
    events = []
    with api.stream("GET", f"{path}/events") as stream:
        for line in stream.iter_lines():
            key, _, value = line.partition(": ")
            if key in ("event", "data", "id"):
                events.append((key, value))
    counts = [json.loads(value) for key, value in events if key == "data"]
    assert counts[0]["waiting"] == 10
    assert counts[-2]["finished"] == 10
    assert counts[-1] == {"status": "finished"}
    assert [value for key, value in events if key == "event"] == ["counts"] * (len(counts) - 1) + ["end"]
    assert events[-3:] == [("id", "end"), ("event", "end"), ("data", '{"status": "finished"}')]
    assert api.get(f"{path}/events", headers={"Last-Event-ID": "end"}).status_code == 204


def test_pages(api: httpx.Client) -> None:
    path = accepted(api, packed(many(7)))
    ended(api, path)
    page = api.get(f"{path}/items", params={"after": 2, "limit": 3}).json()
    assert [each["number"] for each in page["items"]] == [3, 4, 5]
    assert page["next"] == 5
    page = api.get(f"{path}/items", params={"after": 5, "limit": 3}).json()
    assert ([each["number"] for each in page["items"]], page["next"]) == ([6, 7], None)
    assert api.get(f"{path}/items", params={"status": "waiting"}).json() == {"items": [], "next": None}
    assert api.get(f"{path}/items", params={"status": "lost"}).status_code == 422


def test_the_report(api: httpx.Client) -> None:
    labels = {"a.png": "cat", "b.png": "cat;bowl", "c.png": "cat", "no.png": "cat"}
    photos = {name: new_photo(width=30, height=20) for name in list(labels)[:2]}
    files = {**photos, "c.png": new_photo(width=1), "no.png": b"no picture"}
    path = accepted(api, packed({"labels.csv": rows(labels), **files}))
    ended(api, path)
    report = api.get(f"{path}/report", params={"low_confidence": 0.9}).json()
    assert report["photos"] == 3
    by_name = {each["name"]: each for each in report["classes"]}
    # Stripes: a half, a third each, and of a photo one pixel wide the last stripe alone, which is background.
    assert (by_name["cat"]["photos"], by_name["cat"]["empty"]) == (3, 1)
    assert by_name["cat"]["area"] == pytest.approx((1 / 2 + 1 / 3 + 0) / 3, abs=1e-5)
    assert by_name["bowl"]["area"] == pytest.approx(1 / 3, abs=1e-5)
    assert report["coverage"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3, abs=1e-5)
    jobs = [api.get(f"/jobs/{each['job']}").json() for each in items(api, path, status="finished")]
    sure = [each["classes"][0].get("confidence") for each in jobs]
    assert sure[2] is None
    assert by_name["cat"]["confidence"] == pytest.approx((sure[0] + sure[1]) / 2, abs=1e-5)
    assert report["ignored"] == 0
    assert report["empty"] == {"total": 1, "first": [{"number": 3, "image": "c.png", "label": "cat"}]}
    assert [each["image"] for each in report["low_confidence"]["first"]] == ["a.png", "b.png"]
    assert report["failed"]["first"][0]["problem"]["code"] == "image_unreadable"
    short = api.get(f"{path}/report", params={"limit": 0}).json()
    assert short["failed"] == {"total": 1, "first": []}


def test_what_is_unknown(api: httpx.Client) -> None:
    for path in ("", "/items", "/events", "/report", "/archive.zip"):
        answer = api.get(f"/batches/{'0' * 32}{path}")
        assert answer.status_code == 404
        assert answer.json()["type"] == "/problems/unknown-batch"
    path = accepted(api, packed(many(1)))
    assert api.get(f"{path}:items").status_code == 404  # though there is such a key
    assert api.delete("/batches/what").status_code == 204


def test_metrics_count_batches(api: httpx.Client, place: Place) -> None:
    path = accepted(api, packed(many(1)))
    ended(api, path)
    lines = api.get("/metrics").text.splitlines()
    known, running = place.redis.zcard(KNOWN_KEY), place.redis.zcard(OPEN_KEY)
    found = {
        line.split('state="')[1].split('"')[0]: float(line.split()[-1])
        for line in lines
        if line.startswith("semples_batches{")
    }
    assert found["running"] == running
    assert sum(found.values()) == known
    assert found["finished"] > 0


def turned() -> bytes:
    """A JPEG that lies on its side: 24 x 36 pixels."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((36, 24), 50).convert("RGB").save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def batch(running_worker: WorkerProcess, running_janitor: Child, api: httpx.Client) -> str:
    """A batch with photos in folders, one on its side, ignored pixels, and one that failed."""
    running_worker.ensure()
    labels = {"a.png": "cat;bowl", "große/Katze.jpg": "cat", "B/a.webp": "dining_table", "no.png": "cat"}
    files = {"a.png": new_photo(), "große/Katze.jpg": turned(), "B/a.webp": new_photo(width=50)}
    archive = packed({"labels.csv": rows(labels), **files, "no.png": b"no picture"})
    path = accepted(api, archive, min_confidence="0.65")
    assert ended(api, path)["counts"]["finished"] == 3
    return path


@pytest.fixture(scope="module")
def masks(api: httpx.Client, batch: str) -> dict[str, LabelMap]:
    """The jobs' own masks by photo."""
    found = {}
    for each in items(api, batch, status="finished"):
        content = api.get(f"/jobs/{each['job']}/mask.png").content
        found[each["image"]] = np.array(Image.open(io.BytesIO(content)))
    assert any((mask == 255).any() for mask in found.values())
    assert found["große/Katze.jpg"].shape == (36, 24)
    return found


def unpack(api: httpx.Client, batch: str, form: str, folder: Path) -> dict[str, Any]:
    """Fetch and unpack an archive; what it says of itself."""
    with api.stream("GET", f"{batch}/archive.zip", params={"format": form}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/zip"
        content = answer.read()
    assert len(content) == int(answer.headers["content-length"])
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    failed = json.loads((folder / "failed.json").read_text(encoding="utf-8"))
    assert [(each["number"], each["image"], each["problem"]["code"]) for each in failed] == [
        (4, "no.png", "image_unreadable")
    ]
    about: dict[str, Any] = json.loads((folder / "batch.json").read_text(encoding="utf-8"))
    assert (about["batch"], about["format"]) == (batch.rpartition("/")[2], form)
    assert about["model"] == {"name": "double", "version": "0123456789ab"}
    assert about["options"]["min_confidence"] == 0.65
    assert about["software"].startswith("semples ")
    return about


def by_stem(masks: dict[str, LabelMap]) -> dict[str, LabelMap]:
    """The masks as a VOC folder names them: two photos are called a."""
    return {{"B/a.webp": "B__a"}.get(name, Path(name).stem): mask for name, mask in masks.items()}


def test_voc_archive(api: httpx.Client, batch: str, masks: dict[str, LabelMap], tmp_path: Path) -> None:
    unpack(api, batch, "voc", tmp_path / "VOCdevkit" / "VOC2012")
    dataset = VOCSegmentation(str(tmp_path), image_set="train")
    assert sorted(Path(each).stem for each in dataset.images) == sorted(by_stem(masks))
    for path, (image, mask) in zip(dataset.masks, dataset, strict=True):
        assert np.array_equal(np.array(mask), by_stem(masks)[Path(path).stem])
        assert mask.info["Model"] == "double 0123456789ab"
        assert image.size == mask.size
        assert 0x0112 not in image.getexif()


def test_coco_archive(api: httpx.Client, batch: str, masks: dict[str, LabelMap], tmp_path: Path) -> None:
    unpack(api, batch, "coco", tmp_path)
    for name in (RLE_FILE, POLYGON_FILE):
        coco = COCO(tmp_path / name)
        assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == list(NAMES)
        images = coco.loadImgs(coco.getImgIds())
        assert sorted(each["file_name"] for each in images) == sorted(masks)
        for image in images:
            rebuilt = np.zeros((image["height"], image["width"]), dtype=np.uint8)
            for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
                rebuilt[coco.annToMask(annotation).astype(bool)] = annotation["category_id"]
                assert 0.65 < annotation["score"] <= 1
            if "ignored" in image:
                rebuilt[coco_mask.decode(image["ignored"]).astype(bool)] = 255
            assert np.array_equal(rebuilt, masks[image["file_name"]])


def test_cvat_archive(api: httpx.Client, batch: str, masks: dict[str, LabelMap], tmp_path: Path) -> None:
    datumaro = reader("datumaro")
    unpack(api, batch, "cvat", tmp_path)
    with zipfile.ZipFile(tmp_path / "annotations.zip") as archive:
        archive.extractall(tmp_path / "unzipped")
    dataset = datumaro.Dataset.import_from(str(tmp_path / "unzipped"), "voc_segmentation")
    names = [each.name for each in dataset.categories()[datumaro.AnnotationType.label]]
    indices = {name: index for index, name in enumerate(NAMES, start=1)} | {"ignored": 255}
    kept = {str(Path(name).with_suffix("")): mask for name, mask in masks.items()}
    assert sorted(item.id for item in dataset) == sorted(kept)
    for item in dataset:
        rebuilt = np.zeros(kept[item.id].shape, dtype=np.uint8)
        for annotation in item.annotations:
            rebuilt[annotation.image.astype(bool)] = indices[names[annotation.label]]
        assert np.array_equal(rebuilt, kept[item.id])


def test_the_same_archive_again_is_the_same_zip(api: httpx.Client, batch: str) -> None:
    one, two = (api.get(f"{batch}/archive.zip").content for _ in range(2))
    assert one == two


def test_masks_that_are_gone_are_listed_in_the_archive(
    api: httpx.Client, place: Place, batch: str, masks: dict[str, LabelMap]
) -> None:
    job = items(api, batch, status="finished")[0]["job"]
    key = fetch_job(place.redis, job).return_value()["blobs"]["mask"]
    content = place.blobs.get(key)
    place.blobs.delete(key)
    with zipfile.ZipFile(io.BytesIO(api.get(f"{batch}/archive.zip").content)) as archive:
        failed = json.loads(archive.read("failed.json"))
        assert [each["image"] for each in failed] == ["no.png", "a.png"]
        assert len([each for each in archive.namelist() if each.startswith("Seg")]) == 2
    place.blobs.put("results", content)
    assert len(masks) == 3


def test_unknown_archive_format(api: httpx.Client, batch: str) -> None:
    answer = api.get(f"{batch}/archive.zip", params={"format": "yolo"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "format"
