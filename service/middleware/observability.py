"""Middleware around every request: its id, a trace span, two metrics, one log line, security headers."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import problem_response
from service.metrics import HttpMetrics
from worker import telemetry
from worker.queue.schema import JOB_ID
from worker.telemetry import request_id

# The page draws pictures from bytes (blob:) and keeps small ones in the browser's storage (data:).
_POLICY: Final = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob: data:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
)
SECURITY_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Content-Security-Policy": "; ".join(_POLICY),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
)

_HEADER: Final = "X-Request-ID"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_log = logging.getLogger("service.access")


def request_context() -> dict[str, Any]:
    """Return what a job's meta records of the request that posted it: request id and trace."""
    found: dict[str, Any] = {}
    if request := request_id.get():
        found["request"] = request
    if trace := telemetry.trace_context():
        found[telemetry.TRACE_META] = trace
    return found


class RequestLogger:
    """ASGI middleware that logs, counts and traces requests, and answers unexpected errors."""

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; see ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        sent_id = headers.get(_HEADER, "")
        chosen_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
        record = _RequestLog(scope, send, chosen_id)
        # Not reset afterwards: unexpected errors are logged outside of here, and a server gives each
        # request a context of its own.
        request_id.set(record.id)
        with telemetry.server_span("request", headers) as span:
            try:
                await self.app(scope, receive, record.send)
            except Exception as error:
                if not record.status:
                    await problem_response(error, scope)(scope, receive, record.send)
                raise
            finally:
                span.update_name(f"{record.method} {record.route}")
                span.set_attribute("http.response.status_code", record.status)
                self._count(record)

    def _count(self, record: _RequestLog) -> None:
        seconds = time.perf_counter() - record.began
        self._metrics.count(route=record.route, method=record.method, status=record.status, seconds=seconds)
        facts = {"method": record.method, "route": record.route, "status": record.status}
        extra = {**facts, "seconds": round(seconds, 6), "job": record.job}
        _log.info("%s %s %d %.3f s", *facts.values(), seconds, extra=extra)


class SecurityHeaders:
    """ASGI middleware that adds SECURITY_HEADERS to every response that does not set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; see ASGI."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


@dataclass
class _RequestLog:
    """A request and its response so far; the router adds the route to the scope."""

    scope: Scope
    transmit: Send
    id: str
    status: int = 0
    began: float = field(default_factory=time.perf_counter)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[_HEADER] = self.id
        await self.transmit(message)

    @property
    def method(self) -> str:
        method = str(self.scope["method"])
        return method if method in _METHODS else "OTHER"

    @property
    def route(self) -> str:
        """The route's template, which takes few values."""
        return str(getattr(self.scope.get("route"), "path", "unmatched"))

    @property
    def job(self) -> str:
        """The id of the job that the request created or named; empty if there is none."""
        posted = self.scope.get("state", {}).get("job", "")
        job = str(posted or self.scope.get("path_params", {}).get("job_id", ""))
        return job if JOB_ID.fullmatch(job) else ""
