"""Spans from a request to its job, if OpenTelemetry is wanted and installed. Wire layer.

Off, this costs a look at a variable. On, the trace's context travels in a job's meta and is no part
of its identity: the same request always is the same job.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

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
