"""What the API measures of its own requests, for Prometheus; every name is in docs/operations.md."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

# A histogram's time of birth would be a family of its own for each.
disable_created_metrics()  # type: ignore[no-untyped-call]

# Up to the longest wait for a result.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class HttpMeters:
    """Counts requests, in the registry that the API is scraped by."""

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
            buckets=_SECONDS,
        )

    def answered(self, *, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            route: the route's template, never the path: there must not be many of them.
            method: one of HTTP's, or OTHER.
            status: of the answer.
            seconds: until its end.
        """
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route, method).observe(seconds)
