"""Files of a finished job: pictures, annotations, and all of them decided anew."""

import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests.helpers.export_folder import reader
from tests.helpers.posting import new_photo, post, segment
from tests.helpers.service_fixtures import Place, WorkerProcess, png

# In pycocotools, which datumaro uses as well.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ANEW = {"background_threshold": 0.8, "min_confidence": 0.53}

FILES = ("mask", "overlay", "confidence", "scores", "coco", "polygons", "label_studio", "cvat")


def finished(api: httpx.Client, *, image: bytes | None = None, **options: Any) -> dict[str, Any]:
    response = post(api, image, "cat, bowl", query="?wait=30", **options)
    assert response.status_code == 200
    document: dict[str, Any] = response.json()
    assert document["status"] == "finished"
    return document


def label_map(content: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.fixture
def job(worker: WorkerProcess, api: httpx.Client) -> dict[str, Any]:
    return finished(api)


def test_every_file_is_linked(api: httpx.Client, job: dict[str, Any]) -> None:
    links = job["links"]
    assert set(links) >= {"self", "cams", *FILES}
    for path in (*(links[each] for each in FILES), *links["cams"].values()):
        assert api.get(path).status_code == 200, path
    assert set(links["cams"]) == {"cat", "bowl"}


def test_a_cam_has_the_size_of_its_image(api: httpx.Client, job: dict[str, Any]) -> None:
    by_index = api.get(job["links"]["cams"]["cat"])
    picture = Image.open(io.BytesIO(by_index.content))
    steps = np.asarray(picture)
    assert (picture.mode, steps.shape) == ("P", (20, 30))
    assert steps[0, 0] == 255  # where the class's map is 1
    assert (steps[:, -1] == 0).all()
    assert api.get(f"{job['links']['self']}/cam/CAT.png").content == by_index.content


def test_a_class_that_the_job_does_not_have(api: httpx.Client, job: dict[str, Any]) -> None:
    for name in ("dog", "0", "255", "..", "%00", "x" * 3000, "cat.png"):
        answer = api.get(f"{job['links']['self']}/cam/{name}.png")
        assert answer.status_code == 404, name
        if answer.json()["type"] == "/problems/unknown-class":
            assert answer.json()["classes"] == ["cat", "bowl"]
    assert api.get(f"{job['links']['self']}/cam/dog.png").json()["classes"] == ["cat", "bowl"]


def test_confidence_is_the_winners_share(api: httpx.Client, job: dict[str, Any]) -> None:
    steps = label_map(api.get(job["links"]["confidence"]).content)
    assert steps[0, 0] == round(255 / 1.4)  # 1 against the background's 0.4
    assert steps[0, -1] == 255  # nothing but background


def test_overrides_give_what_a_job_with_these_options_gives(api: httpx.Client, job: dict[str, Any]) -> None:
    image = new_photo()
    first = finished(api, image=image)
    other = finished(api, image=image, **ANEW)
    assert first["id"] != other["id"]
    for name in ("mask", "overlay", "confidence"):
        anew = api.get(first["links"][name], params=ANEW).content
        assert anew == api.get(other["links"][name]).content
        assert anew != api.get(first["links"][name]).content
    assert set(np.unique(label_map(api.get(first["links"]["mask"], params=ANEW).content))) == {*(0, 1, 2, 255)}
    for name in ("coco", "polygons", "label_studio", "cvat"):
        named = {"image": "photo.jpg"}
        anew = api.get(first["links"][name], params=ANEW | named).content
        assert anew == api.get(other["links"][name], params=named).content


def test_one_override_keeps_the_other_options(api: httpx.Client) -> None:
    image = new_photo()
    first = finished(api, image=image, background_threshold=0.8)
    other = finished(api, image=image, background_threshold=0.8, min_confidence=0.53)
    anew = api.get(first["links"]["mask"], params={"min_confidence": 0.53})
    assert anew.content == api.get(other["links"]["mask"]).content
    power = finished(api, image=image, background_power=2)
    anew = api.get(first["links"]["mask"], params={"background_power": 2})
    assert anew.content == api.get(power["links"]["mask"]).content


def test_a_segmenters_background_is_its_own(worker: WorkerProcess, api: httpx.Client) -> None:
    image = new_photo(finds=1)
    job = segment(api, image, query="?wait=30").json()
    other = segment(api, image, query="?wait=30", min_confidence=0.9).json()
    anew = api.get(job["links"]["mask"], params={"min_confidence": 0.9})
    assert anew.content == api.get(other["links"]["mask"]).content
    refused = api.get(job["links"]["mask"], params={"background_threshold": 0.5})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "background_threshold"
    # There are no CAMs: the scores are shown.
    assert label_map(api.get(job["links"]["cams"]["cat"]).content)[0, 0] == 255
    nothing = segment(api, query="?wait=30").json()
    for name in FILES:
        assert api.get(nothing["links"][name]).status_code == 200, name
    assert api.get(f"{nothing['links']['self']}/cam/cat.png").json()["classes"] == []


@pytest.mark.parametrize(
    "query",
    [
        {"background_threshold": 0},
        {"background_threshold": "nan"},
        {"background_threshold": "inf"},
        {"background_power": 11},
        {"min_confidence": 1},
        {"min_confidence": "much"},
        {"min_confidense": 0.5},
        {"background_threshold": 0.5, "background_power": 2},
        {"image": "photo.jpg"},
    ],
)
def test_invalid_overrides(api: httpx.Client, job: dict[str, Any], query: dict[str, Any]) -> None:
    answer = api.get(job["links"]["mask"], params=query)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/invalid-request"


@pytest.mark.parametrize("name", ["", "a\x00b", "a\nb", "￿", "x" * 1001])
def test_invalid_image_names(api: httpx.Client, job: dict[str, Any], name: str) -> None:
    assert api.get(job["links"]["cvat"], params={"image": name}).status_code == 422


def test_if_none_match(api: httpx.Client, job: dict[str, Any]) -> None:
    tags = set()
    for path in (*(job["links"][each] for each in FILES), *job["links"]["cams"].values()):
        first = api.get(path)
        tag = first.headers["ETag"]
        tags.add(tag)
        assert "private" in first.headers["Cache-Control"]
        for known in (tag, f'"x", W/{tag}', "*"):
            again = api.get(path, headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["ETag"] == tag
        assert api.get(path, headers={"If-None-Match": '"x"'}).status_code == 200
    assert len(tags) == len(FILES) + 2
    anew = api.get(job["links"]["mask"], params=ANEW)
    assert anew.headers["ETag"] not in tags


def test_files_of_unknown_jobs(place: Place, api: httpx.Client) -> None:
    for path in ("/jobs/" + "0" * 32, "/jobs/..%2f..", "/jobs/é"):
        for name in ("confidence.png", "cam/cat.png", "coco.json", "cvat.xml", "scores.npz"):
            answer = api.get(f"{path}/{name}", headers={"If-None-Match": "*"})
            assert answer.status_code == 404


def test_files_that_have_expired(place: Place, api: httpx.Client, job: dict[str, Any]) -> None:
    for key in place.blobs.keys("results"):
        (place.data / "blobs" / key).unlink()
    for name in FILES:
        answer = api.get(job["links"][name])
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/unknown-job")


def test_pycocotools_reads_the_same_pixels(api: httpx.Client, job: dict[str, Any]) -> None:
    coco = reader("pycocotools.coco")
    mask = label_map(api.get(job["links"]["mask"], params=ANEW).content)
    for name in ("coco", "polygons"):
        data = coco.COCO()
        data.dataset = api.get(job["links"][name], params={**ANEW, "image": "a.jpg"}).json()
        data.createIndex()
        assert data.loadImgs(1)[0]["file_name"] == "a.jpg"
        assert {each["name"] for each in data.loadCats([1, 2])} == {"cat", "bowl"}
        rebuilt = np.zeros_like(mask)
        for annotation in data.loadAnns(data.getAnnIds()):
            rebuilt[data.annToMask(annotation) == 1] = annotation["category_id"]
            assert 0 < annotation["score"] <= 1
        ignored = coco_mask.decode(data.loadImgs(1)[0]["ignored"])
        rebuilt[ignored == 1] = 255
        assert np.array_equal(rebuilt, mask)


def test_datumaro_reads_the_same_pixels(api: httpx.Client, job: dict[str, Any], tmp_path: Path) -> None:
    datumaro = reader("datumaro")
    mask = label_map(api.get(job["links"]["mask"], params=ANEW).content)
    content = api.get(job["links"]["cvat"], params={**ANEW, "image": "große Katze & <co>.jpg"})
    assert content.headers["content-type"] == "application/xml"
    (tmp_path / "annotations.xml").write_bytes(content.content)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "große Katze & <co>.jpg").write_bytes(png())  # it wants to see it
    dataset = datumaro.Dataset.import_from(str(tmp_path), "cvat")
    names = [each.name for each in dataset.categories()[datumaro.AnnotationType.label]]
    assert names == ["cat", "bowl", "ignored"]
    (item,) = dataset
    assert item.id == "große Katze & <co>"
    rebuilt = np.zeros_like(mask)
    for annotation in item.annotations:
        index = {"cat": 1, "bowl": 2, "ignored": 255}[names[annotation.label]]
        rebuilt[annotation.image.astype(bool)] = index
    assert np.array_equal(rebuilt, mask)
    root = ElementTree.fromstring(content.content)
    assert [each.get("label") for each in root.iter("mask")] == ["cat", "bowl", "ignored"]


def test_the_converter_of_label_studio_reads_the_same_pixels(api: httpx.Client, job: dict[str, Any]) -> None:
    brush = reader("label_studio_converter.brush")
    mask = label_map(api.get(job["links"]["mask"], params=ANEW).content)
    answer = api.get(job["links"]["label_studio"], params={**ANEW, "image": "s3://b/a.jpg"})
    (task,) = json.loads(answer.content)
    assert task["data"] == {"image": "s3://b/a.jpg"}
    rebuilt = np.zeros_like(mask)
    for region in task["predictions"][0]["result"]:
        flat = {**region, **region["value"]}
        ((name, found),) = brush.decode_from_annotation("mask", [flat]).items()
        label = name.removeprefix("mask-").removesuffix("-0")
        rebuilt[found > 0] = {"cat": 1, "bowl": 2, "ignored": 255}[label]
    assert np.array_equal(rebuilt, mask)
