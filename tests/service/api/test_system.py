"""Models, health, readiness, documentation; and a 503 that says when to come back if a part is unavailable or full."""

import errno
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.helpers.exposition import Scrape
from tests.helpers.full_disk import FullDisk, files_below
from tests.helpers.posting import new_photo, post, wait_for_status
from tests.helpers.s3_server import answering, aws_environment, nobody, refusal, silent
from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, http_api, server_process, valkey, wait_for
from worker.queue.registry import ModelInfo, WorkerInfo, announce, live_workers
from worker.storage import BlobStore, Patience


def assert_outage(response: httpx.Response, name: str) -> None:
    assert response.status_code == 503
    assert response.json()["type"] == f"/problems/{name}"
    assert int(response.headers["Retry-After"]) > 0
    assert response.headers["content-type"] == "application/problem+json"


def test_no_model_was_ever_announced(place: Place, api: httpx.Client) -> None:
    place.redis.flushdb()
    assert_outage(post(api), "not-ready")
    assert_outage(api.get("/ready"), "not-ready")
    assert api.get("/models").json() == {"default": None, "default_segment": None, "models": []}


def test_the_queue_is_full(idle: Place) -> None:
    photos = [new_photo() for _ in range(2)]
    with http_api(idle, max_queue=2) as api:
        assert [post(api, photo).status_code for photo in photos] == [202, 202]
        uploads = idle.blobs.keys("uploads")
        assert_outage(post(api), "queue-full")
        assert idle.blobs.keys("uploads") == uploads
        # What is there already needs no place.
        assert post(api, photos[0]).status_code == 202


def test_the_disk_is_full(idle: Place, tmp_path: Path) -> None:
    full = replace(idle, blobs=BlobStore(FullDisk(), str(tmp_path)))
    with http_api(full) as api:
        assert_outage(post(api), "storage-full")
    assert files_below(tmp_path) == []
    assert idle.leftovers() == NOTHING
    assert idle.redis.keys("rq:job:*") == []


def test_the_disk_is_broken(idle: Place, tmp_path: Path) -> None:
    broken = replace(idle, blobs=BlobStore(FullDisk(errno.EIO), str(tmp_path)))
    with http_api(broken) as api:
        assert_outage(post(api), "storage-unavailable")
    assert idle.leftovers() == NOTHING


@pytest.mark.parametrize(
    ("outage", "problem"),
    [
        (lambda: answering(refusal(507, "XMinioStorageFull")), "storage-full"),
        (lambda: answering(refusal(403, "AccessDenied")), "storage-unavailable"),
        (nobody, "storage-unavailable"),
        (silent, "storage-unavailable"),
    ],
    ids=["full", "denied", "unreachable", "hangs"],
)
def test_s3_fails(
    idle: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    outage: Callable[[], AbstractContextManager[str]],
    problem: str,
) -> None:
    with outage() as endpoint:
        for name, value in aws_environment(endpoint, tmp_path).items():
            monkeypatch.setenv(name, value)
        store = BlobStore.open("s3://blobs", patience=Patience(read=0.5, attempts=1))
        with http_api(replace(idle, blobs=store)) as api:
            assert_outage(post(api), problem)
    assert idle.leftovers() == NOTHING
    assert idle.redis.keys("rq:job:*") == []


def test_a_stopped_redis_is_an_outage_and_comes_back_with_all_jobs(tmp_path: Path) -> None:
    data = tmp_path / "d"
    data.mkdir()
    with valkey(data) as place:
        worker = WorkerProcess(place)
        place.announce(alive=False)
        with http_api(place) as api:
            location = post(api).headers["Location"]
            place.redis.shutdown(nosave=True)
            for response in (post(api), api.get(location), api.get("/ready"), api.get("/models")):
                assert_outage(response, "queue-unreachable")
            assert api.get("/health").status_code == 200
            with server_process(data):
                assert api.get(location).json()["status"] == "queued"
                worker.start()
                wait_for_status(api, location, "finished")
                assert worker.stop() == 0
                assert place.leftovers() == NOTHING


def test_a_wait_ends_with_redis(tmp_path: Path) -> None:
    with valkey(tmp_path) as place:
        place.announce(alive=False)
        with http_api(place) as api:
            # No worker: the wait is over before the job is done.
            assert post(api, query="?wait=0.5").status_code == 202
            with http_api(place, max_waiting=0) as busy:
                # No place to wait: answered at once.
                assert post(busy, query="?wait=60").status_code == 202


def test_models(api: httpx.Client, worker: WorkerProcess) -> None:
    listed = api.get("/models").json()
    assert listed["default"] == listed["default_segment"] == "double"
    [summary] = listed["models"]
    assert summary["ready"] is True
    model = summary["model"]
    assert model["classes"][0] == {"index": 1, "name": "cat", "synonyms": ["kitty"]}
    assert model["background_threshold"] == 0.4
    assert model["can_segment"] is True
    assert model["segment"] == {"refine": "pamr", "min_confidence": 0.1}
    assert model["metrics"][0]["name"] == "mean_iou"
    assert "nearest_nouns" not in summary["model"]


def test_one_model_says_what_its_prompts_learned(api: httpx.Client, worker: WorkerProcess) -> None:
    document = api.get("/models/double").json()
    assert document["ready"] is True
    assert document["model"] == api.get("/models").json()["models"][0]["model"]
    assert document["nearest_nouns"] == {"cat": [{"noun": "sofa", "similarity": 0.5}]}
    worker.stop()
    stopped = api.get("/models/double").json()
    assert stopped == {**document, "ready": False}
    worker.start()


@pytest.mark.parametrize("name", ["dubble", "%3Cscript%3E", "x" * 5000])
def test_an_unknown_model(api: httpx.Client, worker: WorkerProcess, name: str) -> None:
    answer = api.get(f"/models/{name}")
    assert answer.status_code == 404
    problem = answer.json()
    assert problem["type"] == "/problems/unknown-model"
    assert problem["models"] == ["double"]
    assert "expected one of double, got" in problem["detail"]
    assert len(problem["detail"]) < 200


def test_no_model_yet(tmp_path: Path) -> None:
    with valkey(tmp_path) as place, http_api(place) as api:
        answer = api.get("/models/double")
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/not-ready")
        # A worker of an older version, which explains nothing.
        place.announce()
        document = api.get("/models/double").json()
        assert (document["ready"], document["nearest_nouns"]) == (True, {})


def test_health_and_readiness(api: httpx.Client, worker: WorkerProcess) -> None:
    assert api.get("/health").json()["status"] == "ok"
    ready = api.get("/ready")
    assert ready.status_code == 200
    assert ready.json()["workers"][0]["pid"] == worker.ensure().pid
    worker.stop()
    unready = api.get("/ready")
    assert unready.status_code == 503
    assert unready.json()["type"] == "/problems/not-ready"
    assert unready.headers["Retry-After"]
    assert api.get("/health").status_code == 200
    assert api.get("/models").json()["models"][0]["ready"] is False
    worker.start()
    assert api.get("/ready").status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_need_nothing_from_elsewhere(api: httpx.Client, path: str) -> None:
    page = api.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src" in page.headers["content-security-policy"]
    parts = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert any(part.endswith(".js") for part in parts)
    for part in parts:
        assert "//" not in part
        assert api.get(str(httpx.URL(path).join(part))).status_code == 200, part


SHARED = {"model", "refine", "min_confidence", "callback_url"}


@pytest.mark.parametrize(
    ("path", "required", "optional"),
    [
        ("/pseudo-mask", {"image", "labels"}, {*SHARED, "vocabulary", "background_threshold", "background_power"}),
        ("/segment", {"image"}, SHARED),
    ],
)
def test_the_documentation_names_all_fields_and_answers(
    api: httpx.Client, path: str, required: set[str], optional: set[str]
) -> None:
    document = api.get("/openapi.json").json()
    post = document["paths"][path]["post"]
    [(kind, body)] = post["requestBody"]["content"].items()
    assert kind == "multipart/form-data"
    form = document["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]
    assert set(form["required"]) == required
    assert set(form["properties"]) == required | optional
    assert form["additionalProperties"] is False
    refusals = {"400", "401", "408", "409", "413", "415", "422", "429", "503"}
    assert set(post["responses"]) == {"200", "202"} | refusals
    assert set(post["responses"]["200"]["content"]) == {"application/json", "image/png"}


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
        wait_for(lambda: "the self-test failed: RuntimeError" in reason(api), what="the reason")
        wait_for(lambda: child.exit_code is not None, what="the end")
        assert child.exit_code == 1
        assert Scrape.of(api).values("semples_workers", "state")["troubled",] == 1
        assert api.get("/models").json()["models"][0]["ready"] is False
        # The announcement runs out as any does.
        wait_for(lambda: reason(api) == "no live worker has loaded a model")
    assert "the self-test failed" in worker.log()


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


def test_one_good_worker_is_enough_and_a_silent_one_of_an_older_version_counts(fresh: Place) -> None:
    old = ModelInfo(
        name="m", version="1", kind="k", classes=(), refine="none", min_confidence=0, background_threshold=0.4
    )
    bad = WorkerInfo(name="bad", model=old.ref, device="", host="", pid=1, trouble="lost its way")
    good = WorkerInfo(name="good", model=old.ref, device="", host="", pid=1)
    with http_api(fresh) as api:
        announce(fresh.redis, bad, old)
        assert reason(api) == "worker bad: lost its way"
        announce(fresh.redis, good, old)
        assert [each["name"] for each in api.get("/ready").json()["workers"]] == ["good"]
