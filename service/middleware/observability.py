"""Around every request: its id, a span, two meters and one line in the log."""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import response, to_problem
from service.metrics import HttpMeters
from worker import telemetry
from worker.queue.schema import JOB_ID
from worker.telemetry import request_id

log = logging.getLogger("service.access")

HEADER: Final = "X-Request-ID"
UNMATCHED: Final = "unmatched"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def origin() -> dict[str, Any]:
    """Return what a new job's meta says of the request that posted it; no part of its identity."""
    found: dict[str, Any] = {}
    if request := request_id.get():
        found["request"] = request
    if trace := telemetry.trace_context():
        found[telemetry.TRACE_META] = trace
    return found


class Observe:
    """ASGI middleware that watches requests and changes nothing but a header of the answer.

    Args:
        app: what is watched.
        meters: count requests.
    """

    def __init__(self, app: ASGIApp, *, meters: HttpMeters) -> None:
        self.app = app
        self.meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; see ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = _Exchange(scope, send, _choose_id(headers.get(HEADER, "")))
        # Left as it is afterwards: what logs an unexpected error does so outside of here, and a
        # server gives each request a context of its own.
        request_id.set(exchange.id)
        with telemetry.server_span("request", headers) as span:
            try:
                await self.app(scope, receive, exchange.send)
            except Exception as error:
                if not exchange.status:
                    await response(to_problem(error))(scope, receive, exchange.send)
                raise
            finally:
                span.update_name(f"{exchange.method} {exchange.route}")
                span.set_attribute("http.response.status_code", exchange.status)
                self._count(exchange)

    def _count(self, exchange: _Exchange) -> None:
        seconds = time.perf_counter() - exchange.began
        facts: dict[str, Any] = {
            "method": exchange.method,
            "route": exchange.route,
            "status": exchange.status,
        }
        self.meters.answered(**facts, seconds=seconds)
        extra = {**facts, "seconds": round(seconds, 6), "job": exchange.job}
        log.info("%s %s %d %.3f s", *facts.values(), seconds, extra=extra)


@dataclass
class _Exchange:
    """A request and what is known of its answer; the router fills in the scope meanwhile."""

    scope: Scope
    transmit: Send
    id: str
    status: int = 0
    began: float = field(default_factory=time.perf_counter)

    async def send(self, message: Message) -> None:
        """Send a part of the answer, as ASGI's send."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[HEADER] = self.id
        await self.transmit(message)

    @property
    def method(self) -> str:
        """The method, OTHER if it is none of HTTP's."""
        method = str(self.scope["method"])
        return method if method in _METHODS else "OTHER"

    @property
    def route(self) -> str:
        """The route's template."""
        return str(getattr(self.scope.get("route"), "path", UNMATCHED))

    @property
    def job(self) -> str:
        """The id of the job that the request was about, if it was about one."""
        posted = self.scope.get("state", {}).get("job", "")
        job = str(posted or self.scope.get("path_params", {}).get("job_id", ""))
        return job if JOB_ID.fullmatch(job) else ""


def _choose_id(sent: str) -> str:
    """Return the client's id for its request, or a new one if it has none that may be logged."""
    return sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
