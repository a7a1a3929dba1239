"""A zip of photos in, masks out: real app, real Valkey, real worker, real janitor."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from service.processes import Child
from tests.batch_zips import accepted, ended, items, janitor, many, packed, photo, post, rows, runs
from tests.service_fixtures import NOTHING, Place, WorkerProcess, wait_for
from worker.batch_keys import KNOWN_KEY, OPEN_KEY


@pytest.fixture(scope="module")
def feeding(place: Place) -> Iterator[Child]:
    with janitor(place) as child:
        yield child


@pytest.fixture(autouse=True)
def nothing_left_behind(place: Place, worker: WorkerProcess, feeding: Child) -> Iterator[None]:
    del worker, feeding
    yield
    wait_for(lambda: place.leftovers() == NOTHING, what="an empty queue")


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


def test_events_are_replayed_and_end(api: httpx.Client) -> None:
    path = accepted(api, packed(many(10)))
    events = []
    with api.stream("GET", f"{path}/events") as stream:
        for line in stream.iter_lines():
            key, _, value = line.partition(": ")
            if key in ("event", "data", "id"):
                events.append((key, value))
    told = [json.loads(value) for key, value in events if key == "data"]
    assert told[0]["waiting"] == 10
    assert told[-2]["finished"] == 10
    assert told[-1] == {"status": "finished"}
    assert [value for key, value in events if key == "event"] == ["counts"] * (len(told) - 1) + [
        "end"
    ]
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
    assert api.get(f"{path}/items", params={"status": "waiting"}).json() == {
        "items": [],
        "next": None,
    }
    assert api.get(f"{path}/items", params={"status": "lost"}).status_code == 422


def test_the_report(api: httpx.Client) -> None:
    labels = {"a.png": "cat", "b.png": "cat;bowl", "c.png": "cat", "no.png": "cat"}
    photos = {name: photo(width=30, height=20) for name in list(labels)[:2]}
    files = {**photos, "c.png": photo(width=1), "no.png": b"no picture"}
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
    assert report["empty"] == {
        "total": 1,
        "first": [{"number": 3, "image": "c.png", "label": "cat"}],
    }
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
