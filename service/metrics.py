"""Prometheus metrics: of the API's requests, and of jobs, workers and batches in Redis, read with each scrape.

Every name is in docs/operations.md.
"""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from redis import Redis
from redis.exceptions import RedisError

from worker.batches.store import BatchStore, batch_key
from worker.queue.registry import (
    WorkerInfo,
    known_models,
    live_workers,
    published_metrics,
    worker_key,
)
from worker.queue.rq import STATES, JobQueue, queue_stats
from worker.queue.schema import dead_key
from worker.webhooks.store import DUE_KEY

_BATCH_STATES: Final = {"running": b"open", "finished": b"finished", "canceled": b"canceled"}
_WORKER_PREFIX: Final = "semples_worker_"
_DURATIONS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_log = logging.getLogger(__name__)

# The creation time of each histogram would be a family of its own.
disable_created_metrics()  # type: ignore[no-untyped-call]


class HttpMetrics:
    """Counts requests, in the registry that the API exposes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "semples_http_requests_total",
            "Requests answered, by route template, method and status code.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "semples_http_request_duration_seconds",
            "Seconds from a request's head to the end of its answer, waits for results included.",
            ("route", "method"),
            registry=self.registry,
            buckets=_DURATIONS,
        )

    def count(self, *, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request; ``route`` is the template, never the path, so that there are few of them."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route, method).observe(seconds)


class RedisCollector(Collector):
    """Reads queues, leases, batches and the workers' own metrics."""

    def __init__(self, redis: Redis, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self._redis = redis
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Yield all families; only ``semples_redis_up`` if Redis cannot be reached."""
        up = _gauge("semples_redis_up", "Whether Redis answers: 1 or 0.")
        try:
            models = [model.name for model in known_models(self._redis)]
            families = [
                *self._queues(models),
                *self._left_over(models),
                self._batches(),
                *self._workers(),
            ]
        except RedisError as error:
            _log.warning("metrics without Redis: %s", error)
            families = []
        up.add_metric((), float(bool(families)))
        yield up
        yield from families

    def _queues(self, models: Sequence[str]) -> Sequence[Metric]:
        jobs = _gauge("semples_queue_jobs", "Jobs in Redis by state.", "model", "state")
        oldest = _gauge(
            "semples_queue_oldest_seconds",
            "Seconds that the next interactive job has waited; 0 if none waits.",
            "model",
        )
        queues = [JobQueue(self._redis, model) for model in models]
        for model, stats in zip(models, queue_stats(queues, moment=self._now()), strict=True):
            for state in STATES:
                jobs.add_metric((model, state), stats.jobs[state])
            oldest.add_metric((model,), stats.oldest)
        return jobs, oldest

    def _left_over(self, models: Sequence[str]) -> Sequence[Metric]:
        webhooks = _gauge("semples_webhooks_waiting", "Webhooks not delivered and not given up, due or not.")
        dead = _gauge(
            "semples_dead_letters", "Dead letters: jobs during which workers died, with no attempt left.", "model"
        )
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.zcard(DUE_KEY)
            for model in models:
                pipeline.zcard(dead_key(model))
            waiting, *letters = pipeline.execute()
        webhooks.add_metric((), waiting)
        for model, count in zip(models, letters, strict=True):
            dead.add_metric((model,), count)
        return webhooks, dead

    def _batches(self) -> Metric:
        family = _gauge("semples_batches", "Batches by state.", "state")
        with self._redis.pipeline(transaction=False) as pipeline:
            for batch_id in BatchStore(self._redis).known_ids():
                pipeline.hget(batch_key(batch_id), "status")
            found = collections.Counter(pipeline.execute())
        for state, stored in _BATCH_STATES.items():
            family.add_metric((state,), found[stored])
        return family

    def _workers(self) -> Sequence[Metric]:
        workers = live_workers(self._redis)
        count = _gauge("semples_workers", "Workers whose lease holds.", "model", "state")
        for model in sorted({worker.model.name for worker in workers}):
            of_model = [worker for worker in workers if worker.model.name == model]
            troubled = sum(bool(worker.trouble) for worker in of_model)
            count.add_metric((model, "ready"), len(of_model) - troubled)
            count.add_metric((model, "troubled"), troubled)
        silent, lease = (
            _gauge(name, f"Seconds since the {what}.", "worker", "model")
            for name, what in (
                ("semples_main_thread_silent_seconds", "main thread made progress"),
                ("semples_lease_age_seconds", "worker renewed its lease"),
            )
        )
        for worker, age in zip(workers, self._lease_ages(workers), strict=True):
            lease.add_metric((worker.name, worker.model.name), age)
            silent.add_metric((worker.name, worker.model.name), worker.silent)
        texts = published_metrics(self._redis, [worker.name for worker in workers])
        return count, lease, silent, *_merge_worker_metrics(texts)

    def _lease_ages(self, workers: Sequence[WorkerInfo]) -> list[float]:
        # From the time that is left, so that no two hosts' clocks are compared.
        with self._redis.pipeline(transaction=False) as pipeline:
            for worker in workers:
                pipeline.pttl(worker_key(worker.name))
            left: list[Any] = pipeline.execute()
        return [
            max(0.0, worker.lease - max(0, milliseconds) / 1000)
            for worker, milliseconds in zip(workers, left, strict=True)
        ]


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def _merge_worker_metrics(texts: Mapping[str, str]) -> list[Metric]:
    """Merge the Prometheus texts of workers, by name: each family once, its samples with a ``worker`` label."""
    families: dict[str, Metric] = {}
    for worker, text in texts.items():
        try:
            found = list(text_string_to_metric_families(text))
        except ValueError as error:
            _log.warning("worker %s publishes malformed metrics: %s", worker, error)
            continue
        for family in found:
            if family.name.startswith(_WORKER_PREFIX):
                _add(families, family, worker)
    return list(families.values())


def _add(families: dict[str, Metric], family: Metric, worker: str) -> None:
    known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
    if known.type != family.type:
        return
    for sample in family.samples:
        known.add_sample(sample.name, {**sample.labels, "worker": worker}, sample.value)
