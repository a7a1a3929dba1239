"""What a scrape says: of jobs, workers and requests, after real ones."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.metrics import RedisCollector, _merge_worker_metrics
from tests.helpers.exposition import Scrape
from tests.helpers.posting import post
from tests.helpers.service_fixtures import LEASE, Place, WorkerProcess, http_api, valkey, wait_for
from worker.queue.failures import _dead_letter
from worker.queue.registry import _metrics_key, live_workers, publish_metrics, published_metrics
from worker.telemetry import WorkerMetrics
from worker.webhooks.store import Recipient, register


def test_jobs_are_counted_by_the_worker_and_read_at_the_api(fresh: Place) -> None:
    worker = WorkerProcess(fresh)
    worker.start()
    [name] = [each.name for each in live_workers(fresh.redis)]
    with http_api(fresh) as api:
        assert post(api, query="?wait=30").status_code == 200
        assert post(api, labels="raises", query="?wait=30").json()["status"] == "failed"
        ended = "semples_worker_jobs_ended_total"
        # With the worker's next beat.
        wait_for(lambda: Scrape.of(api).value(ended) == 2, what="the samples")
        seen = Scrape.of(api)
        assert seen.values(ended, "outcome", "code", "worker") == {
            ("finished", "", name): 1,
            ("failed", "model_error", name): 1,
        }
        assert seen.value("semples_worker_queue_wait_seconds_count") == 2
        assert seen.value("semples_worker_decode_seconds_count") == 1
        assert seen.value("semples_worker_encode_seconds_count") == 1
        assert seen.values("semples_worker_batch_size_sum", "worker") == {(name,): 1}
        assert seen.value("semples_worker_batch_model_seconds_count") == 1
        assert seen.value("semples_worker_jobs_in_hand") == 0
        assert seen.value("semples_worker_process_resident_memory_bytes") > 0
        assert seen.value("process_resident_memory_bytes") > 0
        states = seen.values("semples_queue_jobs", "model", "state")
        assert states["double", "finished"] == states["double", "failed"] == 1
        assert sum(states.values()) == 2
        assert seen.values("semples_workers", "model", "state") == {("double", "ready"): 1, ("double", "troubled"): 0}
        [age] = seen.values("semples_lease_age_seconds", "worker").values()
        assert 0 <= age <= LEASE
        requests = seen.values("semples_http_requests_total", "route", "method", "status")
        assert requests["/pseudo-mask", "POST", "200"] == 2
        # A worker that is gone leaves nothing behind.
        assert worker.stop() == 0
        gone = Scrape.of(api)
        assert gone.values("semples_workers", "state") == {}
        assert not [family for family in gone.families if family.startswith("semples_worker_")]


def test_what_somebody_must_see_to_is_counted(fresh: Place) -> None:
    fresh.announce()
    for number in range(3):
        register(fresh.redis, f"{number:032x}", Recipient(url="https://example.org/"), now=1.0)
    _dead_letter(fresh.post("cat"), now=datetime.now(UTC))
    with http_api(fresh) as api:
        seen = Scrape.of(api)
    assert seen.value("semples_webhooks_waiting") == 3
    assert seen.values("semples_dead_letters", "model") == {("double",): 1}


def test_waiting_jobs_have_an_age(fresh: Place) -> None:
    fresh.announce()
    first = fresh.post("cat")
    fresh.post("cat")
    registry = CollectorRegistry()
    later = first.enqueued_at + timedelta(seconds=60)
    registry.register(RedisCollector(fresh.redis, now=lambda: later))
    seen = Scrape(generate_latest(registry).decode())
    assert seen.values("semples_queue_jobs", "model", "state")["double", "queued"] == 2
    assert seen.values("semples_queue_oldest_seconds", "model") == {("double",): 60}
    # Of an older version, which publishes nothing and says nothing of its lease.
    assert seen.values("semples_workers", "state") == {("ready",): 1, ("troubled",): 0}


def test_routes_are_templates_and_methods_are_known(place: Place) -> None:
    with http_api(place) as api:
        for number in range(3):
            assert api.get(f"/jobs/{number:032x}/mask.png").status_code == 404
            assert api.get(f"/nowhere/{number}").status_code == 404
        assert api.request("PROPFIND", "/health").status_code == 405
        assert api.post("/pseudo-mask", data={"a": "b"}).status_code == 415
        seen = Scrape.of(api)
        requests = seen.values("semples_http_requests_total", "route", "method", "status")
        assert requests == {
            ("/jobs/{job_id}/mask.png", "GET", "404"): 3,
            ("unmatched", "GET", "404"): 3,
            ("/health", "OTHER", "405"): 1,
            ("/pseudo-mask", "POST", "415"): 1,
        }
        seconds = seen.values("semples_http_request_duration_seconds_count", "route")
        assert seconds["/jobs/{job_id}/mask.png",] == 3


def test_a_scrape_without_redis_says_so(tmp_path: Path) -> None:
    with valkey(tmp_path) as place, http_api(place) as api:
        assert Scrape.of(api).value("semples_redis_up") == 1
        place.redis.shutdown(nosave=True)
        seen = Scrape.of(api)
        assert seen.values("semples_redis_up") == {(): 0}
        assert seen.value("semples_http_requests_total") == 1
        assert "semples_queue_jobs" not in seen.families


def exposed(texts: dict[str, str]) -> Scrape:
    """What a scrape shows of workers' samples."""

    class Merged:
        def collect(self) -> list[object]:
            return list(_merge_worker_metrics(texts))

    registry = CollectorRegistry()
    registry.register(Merged())  # type: ignore[arg-type]
    return Scrape(generate_latest(registry).decode())


def test_two_workers_samples_are_one_family() -> None:
    one, other = WorkerMetrics(), WorkerMetrics()
    one.halved()
    other.batch(size=2, seconds=0.5)
    texts = {"one": one.exposition().decode(), "other": other.exposition().decode()}
    seen = exposed(texts)
    halvings = seen.values("semples_worker_out_of_memory_halvings_total", "worker")
    assert halvings == {("one",): 1, ("other",): 0}
    assert seen.values("semples_worker_batch_size_bucket", "worker", "le")["other", "2.0"] == 1
    assert seen.families["semples_worker_batch_size"].type == "histogram"
    assert seen.families["semples_worker_jobs_ended"].type == "counter"


@pytest.mark.parametrize(
    "text",
    [
        "no prometheus text at all",
        'semples_worker_jobs_in_hand{worker="x 1',
        "# TYPE semples_redis_up gauge\nsemples_redis_up 1\n",
        "# TYPE semples_worker_jobs_in_hand counter\nsemples_worker_jobs_in_hand_total 9\n",
        "\x00\xff",
        "",
    ],
)
def test_one_worker_cannot_spoil_the_scrape(text: str) -> None:
    good = WorkerMetrics()
    good.set_in_flight(3)
    seen = exposed({"a": good.exposition().decode(), "b": text})
    assert seen.values("semples_worker_jobs_in_hand", "worker") == {("a",): 3}
    assert "semples_redis_up" not in seen.families


def test_samples_live_as_long_as_the_lease(place: Place) -> None:
    publish_metrics(place.redis, "w", b"x 1\n", lease=LEASE)
    assert 0 < place.redis.ttl(_metrics_key("w")) <= LEASE
    assert published_metrics(place.redis, ["nobody", "w"]) == {"w": "x 1\n"}
    assert published_metrics(place.redis, []) == {}
