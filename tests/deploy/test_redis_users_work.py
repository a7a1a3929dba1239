"""All that the programs do, each as its own user of Redis: none is refused anything."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import httpx

from tests.helpers.batch_zips import accepted, ended, many, packed
from tests.helpers.redis_users import USERS, Fortress, events_of
from tests.helpers.service_fixtures import wait_for
from tests.helpers.webhook_receiver import SECRET, receiving


def test_the_programs_do_all_their_work_with_their_rights(tmp_path: Path) -> None:
    hooks = {"SEMPLES_WEBHOOK_SECRET": SECRET, "SEMPLES_WEBHOOK_PRIVATE": "1"}
    fortress = Fortress(tmp_path)
    try:
        fortress.start()
        worker = fortress.start_worker()
        fortress.start_janitor(**hooks)
        fortress.start_api(SEMPLES_RATE="1000/minute", SEMPLES_MAX_QUEUE="2", **hooks)
        _whole_life(fortress)
        _batches(fortress)
        _full(fortress)
        _dead_letter(fortress)
        for part in ("worker", "janitor"):
            done = fortress.call(part, "worker", "health", part)
            assert (done.returncode, done.stderr) == (0, "")
        worker = fortress.children["worker"]
        worker.ask_to_stop()
        worker.wait()
        assert worker.exit_code == 0
        assert fortress.call("worker", "worker", "health", "worker").returncode == 1
        # Nobody was refused anything, and nobody swallowed it if he was.
        assert fortress.denied() == []
        for name in USERS:
            assert "ermission" not in fortress.log(name)
    finally:
        fortress.stop()


def _whole_life(fortress: Fortress) -> None:
    """Post, wait, look, listen, cancel, remove, be told; everything that a client can do."""
    api = fortress.api
    with receiving() as receiver:
        job = fortress.post("cat", query="?wait=30", callback_url=receiver.url())
        assert job["status"] == "finished"
        wait_for(lambda: receiver.deliveries, what="the webhook")
    assert api.get(f"/jobs/{job['id']}/mask.png").status_code == 200
    assert fortress.post(query="?wait=30")["task"] == "segment"
    assert fortress.post("raises", query="?wait=30")["status"] == "failed"
    assert api.get("/models/double").json()["nearest_nouns"]

    running = fortress.post("slow")
    waiting = fortress.post("cat")
    assert fortress.status(waiting) in ("queued", "running")
    fortress.wait_for_status(running, "running")
    assert 'state="started"} 1.0' in api.get("/metrics").text
    for each in (running, waiting):
        assert api.delete(f"/jobs/{each['id']}").status_code in (200, 202, 204)
    fortress.wait_for_status(running, "canceled")
    assert events_of(api.get(f"/jobs/{running['id']}/events"))[-1] == (
        "end",
        {"status": "canceled"},
    )
    first, second = (fortress.post("cat", token="k") for _ in range(2))
    assert first["id"] == second["id"]
    setup = {"project": "1.1", "schema": '<View><Image name="i" value="$image"/></View>'}
    assert api.post("/label-studio/setup", json=setup).status_code < 500

    assert api.delete(f"/jobs/{job['id']}").status_code == 204
    assert api.get(f"/jobs/{job['id']}").status_code == 404
    metrics = api.get("/metrics").text
    assert "semples_redis_up 1.0" in metrics
    assert 'semples_worker_jobs_ended_total{code="",outcome="finished"' in metrics


def _batches(fortress: Fortress) -> None:
    """A zip is worked on, looked at, posted again; another is forgotten while its photos wait."""
    api, archive = fortress.api, packed(many(4) | {"bad.png": b"no picture"})
    path = accepted(api, archive)
    assert ended(api, path)["counts"]["finished"] == 4
    assert events_of(api.get(f"{path}/events"))[-1][0] == "end"
    assert api.get(f"{path}/items", params={"status": "failed"}).json()["items"]
    assert api.get(f"{path}/report").status_code == 200
    assert api.get(f"{path}/archive.zip", params={"format": "voc"}).status_code == 200
    assert accepted(api, archive) == path
    assert ended(api, path)["status"] == "finished"
    slow = accepted(api, packed(many(6, "slow")))
    wait_for(lambda: api.get(slow).json()["counts"]["queued"] > 0, what="a photo in the queue")
    for each in (slow, path):
        assert api.delete(each).status_code in (200, 204)
    assert "semples_batches" in api.get("/metrics").text


def _full(fortress: Fortress) -> None:
    """A queue's end is reached while its worker is busy."""
    jobs = [fortress.post("slow")]
    fortress.wait_for_status(jobs[0], "running")
    with suppress(httpx.HTTPStatusError):
        for _ in range(20):  # the worker takes some ahead
            jobs.append(fortress.post("slow"))
    assert len(jobs) < 21
    for job in jobs:
        fortress.api.delete(f"/jobs/{job['id']}").raise_for_status()
    for job in jobs:
        fortress.wait_for_status(job, "canceled")


def _dead_letter(fortress: Fortress) -> None:
    """A job takes three workers down, is listed, queued again, and taken back."""
    deadly = fortress.post("kills")

    def buried() -> bool:
        if fortress.children["worker"].exit_code is not None:
            fortress.start_worker()
        return fortress.status(deadly) == "failed"

    wait_for(buried, seconds=60, what="the third death")
    assert deadly["id"] in fortress.call("janitor", "worker", "dead", "list").stdout
    if fortress.children["worker"].exit_code is None:
        fortress.children["worker"].ask_to_stop()
        fortress.children["worker"].wait()
    done = fortress.call("janitor", "worker", "dead", "requeue", deadly["id"])
    assert done.stdout == f"queued {deadly['id']}\n"
    assert fortress.api.delete(f"/jobs/{deadly['id']}").status_code == 200
    fortress.start_worker()
    wait_for(fortress.is_ready, what="the worker")
    assert fortress.post("cat", query="?wait=30")["status"] == "finished"
