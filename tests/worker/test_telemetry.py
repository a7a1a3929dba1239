"""Logs: lines that machines read, with the ids of job and request and without secrets."""

import gzip
import io
import json
import logging
import subprocess
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.command import python
from tests.helpers.service_doubles import DoublePredictor
from tests.helpers.service_fixtures import Place, http_api, png, valkey, wait_for
from tests.helpers.undisturbed import context_of
from worker import telemetry
from worker.inference.worker import _make_worker
from worker.queue.rq import fetch_job
from worker.queue.schema import JobRequest
from worker.settings import WorkerSettings
from worker.telemetry import WorkerMetrics, about_job, configure_logging, request_id


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the root logger's lines go; afterwards all is as before."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for handler in handlers:
        root.removeHandler(handler)  # not closed by what is configured here
    token = request_id.set("")
    yield io.StringIO()
    request_id.reset(token)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_say_what_about_which_job(stream: io.StringIO) -> None:
    configure_logging("json", stream=stream)
    log = logging.getLogger("test")
    log.info("before")
    with about_job("j1", request="r1"):
        log.warning("within %d", 1)
        log.warning("another", extra={"job": "j2"})
    log.info("after")
    before, within, another, after = lines(stream)
    assert set(before) == {"time", "level", "logger", "message"}
    assert within["message"] == "within 1"
    assert (within["level"], within["logger"]) == ("WARNING", "test")
    assert (within["job"], within["request"]) == ("j1", "r1")
    assert (another["job"], another["request"]) == ("j2", "r1")
    assert "job" not in after


def test_an_exception_is_one_line(stream: io.StringIO) -> None:
    configure_logging("json", stream=stream)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("test").exception("failed")
    [line] = lines(stream)
    assert line["message"] == "failed"
    assert line["exception"].endswith("ValueError: two\nlines")


def test_what_others_attach_stays_out(stream: io.StringIO) -> None:
    configure_logging("json", stream=stream)
    arguments = {"labels": ["cat"], "callback_url": "https://a/b?key=1"}
    logging.getLogger("rq.worker").error("failed", extra={"arguments": arguments, "kwargs": {}, "outcome": "failed"})
    [line] = lines(stream)
    assert set(line) == {"time", "level", "logger", "message", "outcome"}


def test_text_lines_have_the_ids_at_the_end_of_the_first(stream: io.StringIO) -> None:
    configure_logging("text", stream=stream)
    log = logging.getLogger("test")
    log.info("alone")
    with about_job("j1", request="r1"):
        log.info("first\nsecond")
    alone, first, second = stream.getvalue().splitlines()
    assert alone.endswith(" INFO test: alone")
    assert first.endswith(" INFO test: first [job=j1 request=r1]")
    assert second == "    second"  # no line of a message looks like a record


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_line_has_a_urls_secrets(stream: io.StringIO, form: Any) -> None:
    configure_logging(form, stream=stream)
    log = logging.getLogger("test")
    log.info("posting to %s", "https://host.example/hook?token=s3cret")
    try:
        raise OSError("cannot reach redis://user:s3cret@host:6379/0")
    except OSError:
        log.exception("lost")
    logging.getLogger("httpx").info("GET https://host/?token=s3cret")
    assert "s3cret" not in stream.getvalue()
    assert "host.example/hook" in stream.getvalue()


def values(meters: WorkerMetrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Sample name and label values → value, as Prometheus reads them."""
    families = text_string_to_metric_families(meters.exposition().decode())
    return {
        (sample.name, tuple(sample.labels.values())): sample.value for family in families for sample in family.samples
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
    expected = {
        **{"queue_wait_seconds_sum": 0.02, "batch_size_sum": 3, "batch_model_seconds_sum": 0.5},
        **{"decode_seconds_sum": 0.25, "encode_seconds_sum": 0.125, "encode_seconds_count": 1},
        **{"out_of_memory_halvings_total": 1, "jobs_in_hand": 4},
    }
    assert {name: seen[f"semples_worker_{name}", ()] for name in expected} == expected
    ended = {labels: value for (name, labels), value in seen.items() if name == "semples_worker_jobs_ended_total"}
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


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Tracing is on, into memory."""
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("test"))
    return memory


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A Redis whose model is announced, and whose worker is this process."""
    with valkey(tmp_path) as there:
        there.announce()
        yield there


def post(place: Place, label: str, headers: Mapping[str, str]) -> str:
    """Post an image to the API, and work on it here."""
    with http_api(place) as api:
        form = {"labels": label}
        answer = api.post("/pseudo-mask", files={"image": png()}, data=form, headers=headers)
        assert answer.status_code == 202
    context = context_of(DoublePredictor(), place.blobs)
    settings = WorkerSettings(redis_url=place.url, blobs="blobs")
    worker = _make_worker(place.redis, context, settings)
    worker.register_birth()
    job = fetch_job(place.redis, answer.json()["id"])
    assert job is not None
    worker.execute_job(job, place.queue)
    return str(job.id)


def by_name(exporter: InMemorySpanExporter, count: int) -> dict[str, ReadableSpan]:
    wait_for(lambda: len(exporter.get_finished_spans()) >= count, what="the spans")
    return {span.name: span for span in exporter.get_finished_spans()}


def parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def identity(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def test_one_trace_from_the_clients_request_to_the_models_work(place: Place, exporter: InMemorySpanExporter) -> None:
    trace, client = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    job = post(place, "cat", {"traceparent": f"00-{trace}-{client}-01"})
    spans = by_name(exporter, 5)
    assert set(spans) == {"POST /pseudo-mask", "job", "decode", "model", "encode"}
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {trace}
    request = spans["POST /pseudo-mask"]
    assert parent(request) == int(client, 16)
    assert parent(spans["job"]) == identity(request)
    for stage in ("decode", "model", "encode"):
        assert parent(spans[stage]) == identity(spans["job"])
    assert spans["job"].attributes == {"semples.job": job}
    assert request.attributes == {"http.response.status_code": 202}
    assert spans["decode"].end_time <= spans["encode"].start_time


def test_a_failed_job_is_a_failed_span(place: Place, exporter: InMemorySpanExporter) -> None:
    post(place, "raises", {})
    spans = by_name(exporter, 2)
    assert not spans["job"].status.is_ok
    assert spans["job"].status.description == "model_error"
    assert parent(spans["job"]) == identity(spans["POST /pseudo-mask"])


def test_where_tracing_is_off_a_job_knows_nothing_of_it(place: Place) -> None:
    job = fetch_job(place.redis, post(place, "cat", {"traceparent": "00-" + "1" * 32}))
    assert job is not None
    assert telemetry.TRACE_META not in job.meta
    assert telemetry.trace_context() == {}


def test_nothing_is_configured_without_an_endpoint() -> None:
    telemetry.configure_tracing("test", {})
    assert telemetry.trace_context() == {}


def test_a_trace_is_no_part_of_a_jobs_identity() -> None:
    assert not {telemetry.TRACE_META, "request"} & set(JobRequest.model_fields)


class Collector(BaseHTTPRequestHandler):
    """Takes whatever spans are sent."""

    received: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


SCRIPT = """
import os, sys
{first}
from tests.helpers.undisturbed import context_of
from worker import telemetry
telemetry.configure_tracing("semples-test", os.environ)
with telemetry.server_span("request", {{}}):
    print(sorted(telemetry.trace_context()))
"""


def run_script(first: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return python("-c", SCRIPT.format(first=first), **environment)


def test_spans_reach_the_collector_that_the_environment_names() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        done = run_script("", **{telemetry._ENDPOINT: address, "OTEL_SERVICE_NAME": ""})
        server.shutdown()
    assert done.stdout.strip() == "['traceparent']"
    [(path, body)] = Collector.received
    assert path == "/v1/traces"
    assert b"semples-test" in body


def test_an_endpoint_without_the_extra_is_a_warning() -> None:
    first = "sys.modules['opentelemetry.sdk'] = None"
    done = run_script(first, **{telemetry._ENDPOINT: "http://127.0.0.1:9"})
    assert done.stdout.strip() == "[]"
    assert "semples[otel] is not installed" in done.stderr


def test_off_means_that_the_exporter_is_not_even_imported() -> None:
    code = "import sys, service.app, worker.inference.worker; print('opentelemetry.exporter' in sys.modules)"
    assert python("-c", code).stdout.strip() == "False"
