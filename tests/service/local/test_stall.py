"""Readiness is honest: of a worker that lives, but hangs or whose model does not work any more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.helpers.exposition import Scrape
from tests.helpers.service_fixtures import Place, WorkerProcess, http_api, valkey, wait_for
from worker.queue.registry import ModelInfo, WorkerInfo, announce, live_workers


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Place]:
    with valkey(tmp_path) as place:
        yield place


def reason(api: httpx.Client) -> str:
    """Why the API is not ready; empty if it is."""
    answer = api.get("/ready")
    if answer.status_code == 200:
        return ""
    assert answer.status_code == 503
    problem = answer.json()
    assert problem["type"] == "/problems/not-ready"
    return str(problem["detail"])


def test_a_model_that_begins_to_fail_is_found_out_while_idle(fresh: Place) -> None:
    worker = WorkerProcess(fresh, bundle="moody", options=("--canary", "1"))
    child = worker.start()
    with http_api(fresh) as api:
        assert reason(api) == ""
        (fresh.data / "mood").write_text("raises")
        wait_for(lambda: "the canary image failed: RuntimeError" in reason(api), what="the reason")
        wait_for(lambda: child.exit_code is not None, what="the end")
        assert child.exit_code == 1
        assert Scrape.of(api).values("semples_workers", "state")["troubled",] == 1
        assert api.get("/models").json()["models"][0]["ready"] is False
        # The announcement runs out as any does.
        wait_for(lambda: reason(api) == "no live worker has a warm model")
    assert "the canary image failed" in worker.log()


def test_a_canary_that_hangs_is_found_out(fresh: Place) -> None:
    options = ("--canary", "1", "--canary-patience", "1")
    worker = WorkerProcess(fresh, bundle="moody", options=options)
    worker.start()
    with http_api(fresh) as api:
        assert reason(api) == ""
        (fresh.data / "mood").write_text("wedged")
        wait_for(lambda: "expected some within 1 s" in reason(api), what="the reason")
    worker.kill()


def test_a_job_that_wedges_its_worker_is_found_out_before_the_worker_ends(fresh: Place) -> None:
    worker = WorkerProcess(fresh)
    child = worker.start()
    with http_api(fresh) as api:
        assert reason(api) == ""
        fresh.post("wedged", timeout=1)
        wait_for(lambda: "no progress for" in reason(api), what="the reason")
        assert child.exit_code is None  # it lives, and its lease holds
        assert len(live_workers(fresh.redis)) == 1
    worker.kill()


def test_one_good_worker_is_enough_and_a_silent_one_of_an_older_version_counts(
    fresh: Place,
) -> None:
    old = ModelInfo(
        name="m",
        version="1",
        kind="k",
        classes=(),
        refine="none",
        min_confidence=0,
        background_threshold=0.4,
    )
    bad = WorkerInfo(name="bad", model=old.ref, device="", host="", pid=1, trouble="lost its way")
    good = WorkerInfo(name="good", model=old.ref, device="", host="", pid=1)
    with http_api(fresh) as api:
        announce(fresh.redis, bad, old)
        assert reason(api) == "worker bad: lost its way"
        announce(fresh.redis, good, old)
        assert [each["name"] for each in api.get("/ready").json()["workers"]] == ["good"]
