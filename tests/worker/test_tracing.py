"""Spans from a request to its job's stages, where tracing is on; nothing where it is off."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.helpers.paths import ROOT
from tests.helpers.service_doubles import DoublePredictor
from tests.helpers.service_fixtures import Place, http_api, png, valkey, wait_for
from worker import telemetry
from worker.inference.batcher import Sizes
from worker.inference.pipeline import Runtime, install, installed
from worker.inference.worker import LeaseWorker, Vitals
from worker.queue.registry import ModelInfo, WorkerInfo, announce
from worker.queue.rq import fetch_job
from worker.queue.schema import JobRequest
from worker.settings import WorkerSettings


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
    predictor = DoublePredictor()
    model = ModelInfo.model_validate(predictor.info.to_json())
    with valkey(tmp_path) as there:
        install(Runtime(predictor, model, there.blobs, "w"))
        announce(
            there.redis, WorkerInfo(name="w", model=model.ref, device="", host="", pid=1), model
        )
        yield there
        install(None)


def post(place: Place, label: str, headers: Mapping[str, str]) -> str:
    """Post an image to the API, and work on it here."""
    with http_api(place) as api:
        form = {"labels": label}
        answer = api.post("/pseudo-mask", files={"image": png()}, data=form, headers=headers)
        assert answer.status_code == 202
    runtime = installed()
    worker = LeaseWorker(
        place.redis,
        runtime,
        sizes=Sizes(),
        vitals=Vitals.of(runtime.predictor, WorkerSettings(redis_url=place.url, blobs="blobs")),
    )
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


def test_one_trace_from_the_clients_request_to_the_models_work(
    place: Place, exporter: InMemorySpanExporter
) -> None:
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
        self.received.append(
            (self.path, gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        )
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


SCRIPT = """
import os, sys
{first}
from worker import telemetry
telemetry.configure_tracing("semples-test", os.environ)
with telemetry.server_span("request", {{}}):
    print(sorted(telemetry.trace_context()))
"""


def run_script(first: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(first=first)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


def test_spans_reach_the_collector_that_the_environment_names() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        done = run_script("", **{telemetry.ENDPOINT: address, "OTEL_SERVICE_NAME": ""})
        server.shutdown()
    assert done.stdout.strip() == "['traceparent']"
    [(path, body)] = Collector.received
    assert path == "/v1/traces"
    assert b"semples-test" in body


def test_an_endpoint_without_the_extra_is_a_warning() -> None:
    first = "sys.modules['opentelemetry.sdk'] = None"
    done = run_script(first, **{telemetry.ENDPOINT: "http://127.0.0.1:9"})
    assert done.stdout.strip() == "[]"
    assert "semples[otel] is not installed" in done.stderr


def test_off_means_that_the_exporter_is_not_even_imported() -> None:
    code = "import sys, service.app, worker.inference.worker; print('opentelemetry.exporter' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
