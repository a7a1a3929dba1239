"""What can be read of a batch while it runs and after: events, pages, a report, metrics."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.helpers.batch_zips import accepted, ended, items, many, packed, photo, rows
from tests.helpers.service_fixtures import Place
from worker.batches.records import KNOWN_KEY, OPEN_KEY

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


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
