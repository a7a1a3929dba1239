"""Logs, metrics and traces of all our processes.

Logs are text or JSON lines with the ids of job and request, and never contain the secret parts of a URL. Metrics are
Prometheus's. Traces go through OpenTelemetry's API, which does nothing unless a collector is configured.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TextIO

from opentelemetry import propagate, trace
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
from pythonjsonlogger.json import JsonFormatter
from rq.job import Job

from models.messages import printable, without_secrets
from worker.queue.schema import Timings

_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACE_META: Final = "trace"
_log = logging.getLogger(__name__)
_tracer = trace.get_tracer("semples")

LogFormat = Literal["text", "json"]

request_id: ContextVar[str] = ContextVar("request_id", default="")
job_id: ContextVar[str] = ContextVar("job_id", default="")

_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Other fields of a record are left out: RQ, for one, adds a job's arguments.
_FIELDS: Final = (
    *("time", "level", "logger", "message", "job", "request", "exception"),
    *("method", "route", "status", "seconds", "outcome", "code"),
)
# Loggers with a line for each job or URL; our own lines have ids and no secrets.
_NOISY: Final = ("rq.worker", "httpx", "httpcore", "urllib3", "uvicorn.access")


def configure_logging(form: LogFormat, *, stream: TextIO | None = None) -> None:
    """Log to a stream (None: standard error) as text for people or as JSON lines, replacing earlier settings."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonLines() if form == "json" else _TextLines(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def about_job(job: str, *, request: str = "") -> Iterator[None]:
    """Add the ids of a job, and of the request that posted it, to all lines logged inside."""
    tokens = job_id.set(job), request_id.set(request)
    try:
        yield
    finally:
        job_id.reset(tokens[0])
        request_id.reset(tokens[1])


def _ids(record: logging.LogRecord) -> dict[str, str]:
    """Return the ids that a record was logged with, else those of the current context."""
    found = {
        "job": getattr(record, "job", None) or job_id.get(),
        "request": getattr(record, "request", None) or request_id.get(),
    }
    return {name: str(value) for name, value in found.items() if value}


class _TextLines(logging.Formatter):
    """The message, with ids at the end of its first line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Return a record's message; see logging. Further lines are indented, so that none looks like a record."""
        record.message = "\n    ".join(map(printable, record.message.split("\n")))
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's lines; see logging."""
        first, newline, rest = without_secrets(super().format(record)).partition("\n")
        ids = " ".join(f"{name}={value}" for name, value in _ids(record).items())
        return f"{first} [{ids}]{newline}{rest}" if ids else f"{first}{newline}{rest}"


class _JsonLines(JsonFormatter):
    """One object a line, of known fields alone."""

    def __init__(self) -> None:
        super().__init__(
            "%(levelname)s %(name)s %(message)s",
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            timestamp="time",
            json_ensure_ascii=False,
        )

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Fill in a line's fields; see pythonjsonlogger."""
        super().add_fields(log_data, record, message_dict)
        log_data.update(_ids(record))

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Keep the known fields, scrubbed and in one order."""
        known = {name: log_data[name] for name in _FIELDS if log_data.get(name) is not None}
        return {name: without_secrets(value) if isinstance(value, str) else value for name, value in known.items()}


Outcome = Literal["finished", "failed", "canceled", "retried"]

_PREFIX = "semples_worker"
# The creation time of each histogram would be a metric of its own.
disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_WAITS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class WorkerMetrics:
    """One worker's Prometheus metrics, in a registry of their own, named in docs/operations.md; thread-safe.

    ``device_memory`` reads the bytes that the device holds for this process, None where it has no memory of its own.
    """

    def __init__(self, *, device_memory: Callable[[], int | None] = lambda: None) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(namespace=_PREFIX, registry=self.registry)
        self.registry.register(_DeviceMemoryCollector(device_memory))
        self._waits = self._histogram("queue_wait", "Seconds a job waited in the queue.", _WAITS)
        self._model = self._histogram("batch_model", "Seconds of the model for a batch.", _SECONDS)
        self._decode = self._histogram("decode", "Seconds to read and decode an image.", _SECONDS)
        self._encode = self._histogram("encode", "Seconds to encode and store a result.", _SECONDS)
        self._sizes = Histogram(f"{_PREFIX}_batch_size", "Images in a batch.", registry=self.registry, buckets=_SIZES)
        self._ended = Counter(
            f"{_PREFIX}_jobs_ended_total",
            "Attempts at jobs by outcome; code says why one failed or is tried again.",
            ("outcome", "code"),
            registry=self.registry,
        )
        self._halvings = Counter(
            f"{_PREFIX}_out_of_memory_halvings_total",
            "Batches that were halved because they did not fit into memory.",
            registry=self.registry,
        )
        self._in_flight = Gauge(f"{_PREFIX}_jobs_in_hand", "Jobs leased and not ended.", registry=self.registry)
        # Exists from the start: a rate needs a first sample.
        self._ended.labels("finished", "")

    def started(self, *, waited: float) -> None:
        """Count a leased job, and the seconds that it waited in the queue."""
        self._waits.observe(waited)

    def batch(self, *, size: int, seconds: float) -> None:
        """Count a forward pass over a batch."""
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
        """Count an attempt at a job that has ended, with its FailureCode, and the seconds of decoding and encoding."""
        self._ended.labels(outcome, code).inc()
        if decode is not None:
            self._decode.observe(decode)
        if encode is not None:
            self._encode.observe(encode)

    def halved(self) -> None:
        """Count a batch that was halved because it did not fit into memory."""
        self._halvings.inc()

    def set_in_flight(self, jobs: int) -> None:
        """Set how many jobs are in flight."""
        self._in_flight.set(jobs)

    def exposition(self) -> bytes:
        """Return all samples in Prometheus's text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        full = f"{_PREFIX}_{name}_seconds"
        return Histogram(full, text, registry=self.registry, buckets=buckets)


@dataclass(frozen=True)
class _DeviceMemoryCollector(Collector):
    """Reads the device's memory at each scrape."""

    read: Callable[[], int | None]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metric; see prometheus_client."""
        family = GaugeMetricFamily(
            f"{_PREFIX}_device_memory_bytes",
            "Bytes of the device's memory that the process holds for tensors.",
        )
        memory = self.read()
        if memory is not None:
            family.add_metric((), memory)
        yield family


class _Stage(NamedTuple):
    """A part of a job, from when to when by ``time.perf_counter``."""

    name: str
    begin: float
    end: float


def configure_tracing(service: str, environment: Mapping[str, str]) -> None:
    """Send spans to the collector that the environment names, if semples[otel] is installed."""
    if not environment.get(_ENDPOINT):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        _log.warning("%s is set, but semples[otel] is not installed: no traces", _ENDPOINT)
        return
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def server_span(name: str, headers: Mapping[str, str]) -> AbstractContextManager[trace.Span]:
    """Trace a request, as part of the trace that its headers name."""
    context = propagate.extract(headers)
    return _tracer.start_as_current_span(name, context=context, kind=trace.SpanKind.SERVER)


def trace_context() -> dict[str, str]:
    """Return the current trace's context for a job's meta, which is no part of its identity; empty without a trace."""
    found: dict[str, str] = {}
    propagate.inject(found)
    return found


def log_finished(job: Job, timings: Timings, metrics: WorkerMetrics) -> None:
    """Log, count and trace a job that has just finished."""
    metrics.ended("finished", decode=timings.decode, encode=timings.encode)
    encoding = time.perf_counter() - timings.encode
    forward = encoding - timings.model
    stages = (
        _Stage("decode", forward - timings.decode, forward),
        _Stage("model", forward, encoding),
        _Stage("encode", encoding, encoding + timings.encode),
    )
    trace_job(job.meta, job.id, stages)
    ids = {"job": job.id, "request": job.meta.get("request")}
    _log.info("job finished", extra={**ids, "outcome": "finished"})


def trace_job(meta: Mapping[str, Any], job: str, stages: Sequence[_Stage] = (), *, error: str = "") -> None:
    """Trace a job that has ended, with its stages, which overlap within a batch, and its FailureCode."""
    begin = _nanoseconds(stages[0].begin) if stages else time.time_ns()
    span = _tracer.start_span(
        "job",
        context=propagate.extract(meta.get(TRACE_META) or {}),
        kind=trace.SpanKind.CONSUMER,
        start_time=begin,
        attributes={"semples.job": job},
    )
    if error:
        span.set_status(trace.StatusCode.ERROR, error)
    context = trace.set_span_in_context(span)
    for stage in stages:
        part = _tracer.start_span(stage.name, context=context, start_time=_nanoseconds(stage.begin))
        part.end(_nanoseconds(stage.end))
    span.end(_nanoseconds(stages[-1].end) if stages else begin)


def _nanoseconds(moment: float) -> int:
    """Convert a moment of perf_counter's clock to the calendar's."""
    return int((time.time() - time.perf_counter() + moment) * 1e9)
