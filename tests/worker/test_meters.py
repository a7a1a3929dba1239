"""A worker's meters: what was counted is what is read."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from worker.telemetry import WorkerMetrics


def values(meters: WorkerMetrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Sample name and label values → value, as Prometheus reads them."""
    families = text_string_to_metric_families(meters.exposition().decode())
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_every_call_is_counted() -> None:
    meters = WorkerMetrics()
    meters.started(waited=0.02)
    meters.batch(size=3, seconds=0.5)
    meters.ended("finished", decode=0.25, encode=0.125)
    meters.ended("failed", code="out_of_memory")
    meters.ended("canceled")
    meters.halved()
    meters.set_in_flight(4)
    seen = values(meters)
    assert seen["semples_worker_queue_wait_seconds_sum", ()] == 0.02
    assert seen["semples_worker_batch_size_sum", ()] == 3
    assert seen["semples_worker_batch_model_seconds_sum", ()] == 0.5
    assert seen["semples_worker_decode_seconds_sum", ()] == 0.25
    assert seen["semples_worker_encode_seconds_sum", ()] == 0.125
    assert seen["semples_worker_encode_seconds_count", ()] == 1
    assert seen["semples_worker_out_of_memory_halvings_total", ()] == 1
    assert seen["semples_worker_jobs_in_hand", ()] == 4
    ended = {
        labels: value
        for (name, labels), value in seen.items()
        if name == "semples_worker_jobs_ended_total"
    }
    assert ended == {("", "finished"): 1, ("out_of_memory", "failed"): 1, ("", "canceled"): 1}


def test_the_first_finished_job_is_seen_as_an_increase() -> None:
    assert values(WorkerMetrics())["semples_worker_jobs_ended_total", ("", "finished")] == 0


def test_memory_is_the_devices_or_the_processs() -> None:
    memory = "semples_worker_device_memory_bytes"
    assert values(WorkerMetrics(device_memory=lambda: 20))[memory, ()] == 20
    cpu = values(WorkerMetrics())
    assert not [name for name, _ in cpu if name == memory]
    assert cpu["semples_worker_process_resident_memory_bytes", ()] > 0


def test_meters_share_nothing() -> None:
    one, other = WorkerMetrics(), WorkerMetrics()
    one.halved()
    assert values(other)["semples_worker_out_of_memory_halvings_total", ()] == 0
    assert not [name for name, _ in values(one) if name.endswith("_created")]
