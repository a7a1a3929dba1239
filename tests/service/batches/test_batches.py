"""A zip of photos in, masks out: real app, real Valkey, real worker, real janitor."""

from __future__ import annotations

import io

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.helpers.batch_zips import accepted, ended, items, packed, photo, post, rows, runs
from tests.helpers.service_fixtures import NOTHING, Place, wait_for

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def test_all_photos_get_masks(api: httpx.Client) -> None:
    files = {
        "labels.csv": rows(
            {"a.png": "cat", "street/b.jpg": "bowl;kitty", "c.webp": "dining_table"}
        ),
        "a.png": photo(),
        "street/b.jpg": photo(width=40),
        "c.webp": photo(),
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
    one = photo()
    path = accepted(api, packed({"labels.csv": rows({"a.png": "bowl;cat"}), "a.png": one}))
    ended(api, path)
    alone = api.post("/pseudo-mask", files={"image": one}, data={"labels": "cat,bowl"}).json()
    assert [each["job"] for each in items(api, path)] == [alone["id"]]
    assert alone["status"] == "finished"
    assert alone["options"]["class_thresholds"] == {"bowl": 0.6}


def test_photos_that_fail_say_why_and_the_others_go_on(api: httpx.Client) -> None:
    labels = {
        "good.png": "cat",
        "cut.png": "cat",
        "text.png": "cat",
        "bad.png": "raises",
        "e.png": "",
    }
    files = {
        "labels.csv": rows(labels),
        "good.png": photo(),
        "cut.png": photo(width=200)[:100],
        "text.png": b"no picture",
        "bad.png": photo(),
        "e.png": photo(),
        "unsaid.png": photo(),
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


def test_the_same_zip_is_the_same_batch_and_runs_again_what_may_go_well(
    api: httpx.Client, place: Place
) -> None:
    files = {
        "labels.csv": rows({"a.png": "cat", "b.png": "raises", "c.png": "cat"}),
        **{"a.png": photo(), "b.png": photo(), "c.png": b"no picture"},
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
    assert accepted(api, packed({**files, "c.png": photo()})) != path


def test_what_somebody_posted_alone_outlives_a_canceled_batch(api: httpx.Client) -> None:
    one = photo()
    alone = api.post("/pseudo-mask", files={"image": one}, data={"labels": "slow"}).json()
    path = accepted(api, packed({"labels.csv": rows({"a.png": "slow"}), "a.png": one}))
    wait_for(lambda: api.get(path).json()["counts"]["waiting"] == 0, what="the photo's turn")
    assert api.delete(path).json()["status"] == "canceled"
    job = f"/jobs/{alone['id']}"
    wait_for(lambda: api.get(job).json()["status"] in ("finished", "canceled"), what="its end")
    assert api.get(job).json()["status"] == "finished"


def test_canceled_in_the_middle_it_goes_on_when_it_is_posted_again(
    api: httpx.Client, place: Place
) -> None:
    quick = {f"{n}.png": photo() for n in range(4)}
    slow = {f"{n}.png": photo(width=40 + n) for n in range(4, 7)}  # one after the other
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
