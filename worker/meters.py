"""What a worker measures of itself, for Prometheus; every name is in docs/operations.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

Outcome = Literal["finished", "failed", "canceled", "retried"]
DeviceMemoryReader = Callable[[], int | None]

PREFIX = "semples_worker"
# A histogram's time of birth would be a family of its own for each.
disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_WAITS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


def _no_memory() -> None:
    return None


class Meters:
    """One worker's counters, in a registry of their own; all methods may be called by any thread.

    Args:
        device_memory: reads the device's memory, None where that is the process's own.
    """

    def __init__(self, *, device_memory: DeviceMemoryReader = _no_memory) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(namespace=PREFIX, registry=self.registry)
        self.registry.register(_DeviceMemoryCollector(device_memory))
        self._waits = self._histogram("queue_wait", "Seconds a job waited in the queue.", _WAITS)
        self._model = self._histogram("batch_model", "Seconds of the model for a batch.", _SECONDS)
        self._decode = self._histogram("decode", "Seconds to read and decode an image.", _SECONDS)
        self._encode = self._histogram("encode", "Seconds to encode and store a result.", _SECONDS)
        self._sizes = Histogram(
            f"{PREFIX}_batch_size",
            "Images in a batch.",
            registry=self.registry,
            buckets=_SIZES,
        )
        self._ended = Counter(
            f"{PREFIX}_jobs_ended_total",
            "Attempts at jobs by outcome; code says why one failed or is tried again.",
            ("outcome", "code"),
            registry=self.registry,
        )
        self._halvings = Counter(
            f"{PREFIX}_out_of_memory_halvings_total",
            "Batches that were halved because they did not fit into memory.",
            registry=self.registry,
        )
        self._in_hand = Gauge(
            f"{PREFIX}_jobs_in_hand", "Jobs taken and not ended.", registry=self.registry
        )
        # Seen from the start: a rate needs a first sample.
        self._ended.labels("finished", "")

    def took(self, *, waited: float) -> None:
        """Count a job taken from the queue, where it waited for so many seconds."""
        self._waits.observe(waited)

    def batch(self, *, size: int, seconds: float) -> None:
        """Count a pass of the model over so many images in so many seconds."""
        self._sizes.observe(size)
        self._model.observe(seconds)

    def ended(
        self,
        outcome: Outcome,
        *,
        code: str = "",
        decode: float | None = None,
        encode: float | None = None,
    ) -> None:
        """Count the end of an attempt at a job.

        Args:
            outcome: how it ended; "retried" is a failure after which the job is queued again.
            code: a FailureCode, if it failed.
            decode: seconds to read and decode the image, if it came to that.
            encode: seconds to encode and store the result, if it came to that.
        """
        self._ended.labels(outcome, code).inc()
        if decode is not None:
            self._decode.observe(decode)
        if encode is not None:
            self._encode.observe(encode)

    def halved(self) -> None:
        """Count a batch that did not fit into memory and was halved."""
        self._halvings.inc()

    def holds(self, jobs: int) -> None:
        """Say how many jobs are in hand."""
        self._in_hand.set(jobs)

    def exposition(self) -> bytes:
        """Return all samples in Prometheus's text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        full = f"{PREFIX}_{name}_seconds"
        return Histogram(full, text, registry=self.registry, buckets=buckets)


@dataclass(frozen=True)
class _DeviceMemoryCollector(Collector):
    """Reads the device's memory when asked."""

    read: DeviceMemoryReader

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the family, without samples where the device has no memory of its own."""
        family = GaugeMetricFamily(
            f"{PREFIX}_device_memory_bytes",
            "Bytes of the device's memory that the process holds for tensors.",
        )
        memory = self.read()
        if memory is not None:
            family.add_metric((), memory)
        yield family
