"""The API put together; nothing is decided here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from redis import Redis

from service import errors
from service.callbacks import CallbackRules
from service.catalog import Catalog
from service.jobs import Jobs, Limits
from service.limits import BodyLimit
from service.routes import health, jobs, models, posts
from service.settings import Settings
from service.waiting import ResultWaiter
from worker.blobs import BlobStore
from worker.callback_url import Resolve, resolve_host

DESCRIPTION = """Images with class labels go in, pixel masks come out.

Post an image with the labels of what it shows (`/pseudo-mask`), or without any to a model that finds out itself
(`/segment`); then ask for its job, or wait for the mask itself.
Errors are `application/problem+json`; their types are explained under `/problems/…`.
"""


def create_app(
    settings: Settings, redis: Redis, blobs: BlobStore, *, resolve: Resolve = resolve_host
) -> FastAPI:
    """Return the API.

    Args:
        settings: limits, and where to wait for results.
        redis: where jobs are.
        blobs: where images and results are.
        resolve: finds the addresses of a callback's host.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.decoders = CapacityLimiter(settings.decoders)
        app.state.waiter = ResultWaiter(settings.redis_url, max_waiting=settings.max_waiting)
        yield
        await app.state.waiter.close()

    app = FastAPI(
        title="SemPLeS",
        description=DESCRIPTION,
        lifespan=lifespan,
        # More is no image and a few choices, but a mistake or an attack.
        form_limits={"max_files": 1, "max_fields": 100, "max_part_size": 2**17},
    )
    limits = Limits(settings.max_queue, settings.job_timeout, settings.max_pixels)
    app.state.jobs = Jobs(redis, blobs, limits)
    app.state.catalog = Catalog(redis, default=settings.model)
    app.state.callback_rules = CallbackRules(
        bool(settings.webhook_secret), settings.webhook_private, resolve
    )
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    errors.install(app)
    for router in (posts.router, jobs.router, models.router, health.router):
        app.include_router(router)

    @app.get("/", include_in_schema=False)
    async def get_root() -> RedirectResponse:
        return RedirectResponse("docs")

    return app
