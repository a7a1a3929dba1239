"""Logs of all our processes: text or JSON lines, with the ids of job and request. Wire layer."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TextIO

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

from worker.queue.schema import Timings

LogFormat = Literal["text", "json"]

request_id: ContextVar[str] = ContextVar("request_id", default="")
job_id: ContextVar[str] = ContextVar("job_id", default="")

_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Whatever else a record carries stays out: RQ, for one, adds a job's arguments.
_FIELDS: Final = (
    *("time", "level", "logger", "message", "job", "request", "exception"),
    *("method", "route", "status", "seconds", "outcome", "code"),
)
# They log one line for each job or URL, which we do ourselves, with ids and without secrets.
_TALKATIVE: Final = ("rq.worker", "httpx", "httpcore", "urllib3", "uvicorn.access")
_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@]*@", re.IGNORECASE)
_QUERY = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s?#'\"]*)\?[^\s'\"]*", re.IGNORECASE)


def configure_logging(form: LogFormat, *, stream: TextIO | None = None) -> None:
    """Have this process log to a stream, in place of what was configured before.

    Args:
        form: "text" for people, "json" for one object a line.
        stream: where to; None for standard error.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if form == "json" else TextLines(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


def scrub(text: str) -> str:
    """Take out of every URL in a text what may be secret: user, password and query."""
    return _QUERY.sub(r"\1?…", _USER.sub(r"\1…@", text))


@contextmanager
def about_job(job: str, *, request: str = "") -> Iterator[None]:
    """Have all lines logged inside carry a job's id, and that of the request that posted it."""
    tokens = job_id.set(job), request_id.set(request)
    try:
        yield
    finally:
        job_id.reset(tokens[0])
        request_id.reset(tokens[1])


def _ids(record: logging.LogRecord) -> dict[str, str]:
    """Return a record's ids: those it was logged with, else those of what is being done."""
    found = {
        "job": getattr(record, "job", None) or job_id.get(),
        "request": getattr(record, "request", None) or request_id.get(),
    }
    return {name: str(value) for name, value in found.items() if value}


class TextLines(logging.Formatter):
    """The message, with ids at the end of its first line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's lines; see logging."""
        first, newline, rest = scrub(super().format(record)).partition("\n")
        ids = " ".join(f"{name}={value}" for name, value in _ids(record).items())
        return f"{first} [{ids}]{newline}{rest}" if ids else f"{first}{newline}{rest}"


class JsonLines(JsonFormatter):
    """One object a line, of known fields alone."""

    def __init__(self) -> None:
        super().__init__(
            "%(levelname)s %(name)s %(message)s",
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            timestamp="time",
            json_ensure_ascii=False,
        )

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """Fill in a line's fields; see pythonjsonlogger."""
        super().add_fields(log_data, record, message_dict)
        log_data.update(_ids(record))

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Keep the known fields, scrubbed and in one order."""
        known = {name: log_data[name] for name in _FIELDS if log_data.get(name) is not None}
        return {
            name: scrub(value) if isinstance(value, str) else value for name, value in known.items()
        }


# What a worker measures of itself, for Prometheus; every name is in docs/operations.md.

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


# Spans from a request to its job, if OpenTelemetry is wanted and installed. Wire layer.
#
# Off, this costs a look at a variable. On, the trace's context travels in a job's meta and is no part
# of its identity: the same request always is the same job.

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

log = logging.getLogger(__name__)

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACE_META = "trace"


class Stage(NamedTuple):
    """A part of a job, from when to when by ``time.perf_counter``."""

    name: str
    begin: float
    end: float


class SpanLike(Protocol):
    """What our code does with a span."""

    def set_attribute(self, key: str, value: str | int) -> None:
        """Note a fact."""
        ...

    def update_name(self, name: str) -> None:
        """Name it, once that is known."""
        ...


class _NoSpan:
    def set_attribute(self, key: str, value: str | int) -> None:
        """Forget it."""

    def update_name(self, name: str) -> None:
        """Forget it."""


class _Holder:
    """The one tracer of this process, None where tracing is off."""

    tracer: Any = None


def configure_tracing(service: str, environment: Mapping[str, str]) -> None:
    """Send spans to the collector that the environment names, if it does and the extra is installed.

    Args:
        service: this process's name in traces.
        environment: its variables; OpenTelemetry reads its others itself.
    """
    if not environment.get(ENDPOINT):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        log.warning("%s is set, but semples[otel] is not installed: no traces", ENDPOINT)
        return
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(provider)


def use(provider: TracerProvider | None) -> None:
    """Make spans with a provider from now on, or none at all."""
    _Holder.tracer = None if provider is None else provider.get_tracer("semples")


@contextmanager
def server_span(name: str, carrier: Mapping[str, str]) -> Iterator[SpanLike]:
    """Span what a request does, as a part of the trace that its headers name, if they do."""
    if _Holder.tracer is None:
        yield _NoSpan()
        return
    from opentelemetry.trace import SpanKind  # noqa: PLC0415

    with _Holder.tracer.start_as_current_span(
        name, context=_extract(carrier), kind=SpanKind.SERVER
    ) as span:
        yield span


def carrier() -> dict[str, str]:
    """Return the current trace's context for a job's meta; empty if tracing is off."""
    if _Holder.tracer is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    found: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(found)
    return found


def record_job(
    meta: Mapping[str, Any], job: str, stages: Sequence[Stage] = (), *, error: str = ""
) -> None:
    """Span a job that has ended and its stages, which need not touch each other.

    After the fact, because in a batch the stages of many jobs run in one another's time.

    Args:
        meta: the job's.
        job: its id.
        stages: in order; none if it came to none.
        error: why it failed, a FailureCode.
    """
    if _Holder.tracer is None:
        return
    from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context  # noqa: PLC0415

    begin = _nanoseconds(stages[0].begin) if stages else time.time_ns()
    end = _nanoseconds(stages[-1].end) if stages else begin
    span = _Holder.tracer.start_span(
        "job",
        context=_extract(meta.get(TRACE_META) or {}),
        kind=SpanKind.CONSUMER,
        start_time=begin,
        attributes={"semples.job": job},
    )
    if error:
        span.set_status(StatusCode.ERROR, error)
    context = set_span_in_context(span)
    for stage in stages:
        part = _Holder.tracer.start_span(
            stage.name, context=context, start_time=_nanoseconds(stage.begin)
        )
        part.end(_nanoseconds(stage.end))
    span.end(end)


def _extract(found: Mapping[str, str]) -> Any:
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    return TraceContextTextMapPropagator().extract(found)


def _nanoseconds(moment: float) -> int:
    """Turn a moment of perf_counter's clock into one of the calendar's."""
    return int((time.time() - time.perf_counter() + moment) * 1e9)


# What is told of a job that has finished: counters, spans and a line in the log.


def tell_finished(job: Job, times: Timings, meters: Meters) -> None:
    """Tell of a job that has just finished."""
    meters.ended("finished", decode=times.decode, encode=times.encode)
    record_job(job.meta, job.id, _stages(times))
    ids = {"job": job.id, "request": job.meta.get("request")}
    log.info("job finished", extra={**ids, "outcome": "finished"})


def _stages(timings: Timings) -> list[Stage]:
    """Say from when to when each part of a job took that has just ended, without the waits between."""
    encoding = time.perf_counter() - timings.encode
    modeling = encoding - timings.model
    return [
        Stage("decode", modeling - timings.decode, modeling),
        Stage("model", modeling, encoding),
        Stage("encode", encoding, encoding + timings.encode),
    ]
