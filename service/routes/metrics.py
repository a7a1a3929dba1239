"""What Prometheus scrapes: the API, the queues and all live workers."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=Response)
def get_metrics(request: Request) -> Response:
    """Return all samples in Prometheus's text format; see docs/operations.md."""
    text = generate_latest(request.app.state.registry)
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)
