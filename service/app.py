"""The API put together; nothing is decided here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CapacityLimiter
from fastapi import FastAPI
from redis import Redis

from service.api import batches, errors, jobs, label_studio, masks, openapi, pages, results, system
from service.api.forms import CallbackRules
from service.batches.service import Batches
from service.batches.upload import SpoolPlaces, ZipLimits, keep_clean
from service.jobs.model_registry import Catalog
from service.jobs.service import Jobs
from service.jobs.watch import Listeners, ResultWaiter
from service.label_studio import Projects, TaskImages
from service.metrics import HttpMeters, RedisCollector
from service.middleware.auth import SCHEMES, KeyCheck, open_ring
from service.middleware.body_limit import BodyBounds, BodyLimit
from service.middleware.headers import SecurityHeaders
from service.middleware.observability import Observe
from service.middleware.rate_limit import RateLimit, parse_rate
from service.settings import Settings
from service.store_probe import StoreProbe
from worker.queue.jobs import Limits
from worker.storage import BlobStore
from worker.webhooks.urls import Resolve, resolve_host

ZIPS_AT_ONCE = 2
"""That are looked through, and that are made: each takes a thread, and some memory or disk."""
UNPACKED_FACTOR = 4
"""Photos are packed already: what unpacks to more than so many times the largest zip is no folder of photos."""

DESCRIPTION = """Images with class labels go in, pixel masks come out.

Post an image with the labels of what it shows (`/pseudo-mask`), or without any to a model that finds out itself
(`/segment`); then ask for its job, or wait for the mask itself. Post a zip of many with their labels to `/batches`.
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

    Raises:
        ValueError: if the settings name API keys or a rate that cannot be read.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.decoders = CapacityLimiter(settings.decoders)
        app.state.unpackers = CapacityLimiter(ZIPS_AT_ONCE)
        app.state.packers = CapacityLimiter(ZIPS_AT_ONCE)
        app.state.waiter = ResultWaiter(settings.redis_url, max_waiting=settings.max_waiting)
        app.state.listeners = Listeners(settings.redis_url, most=settings.max_listening)
        cleaning = asyncio.create_task(keep_clean(settings.spool))
        yield
        cleaning.cancel()
        await app.state.waiter.close()
        await app.state.listeners.close()

    app = FastAPI(
        title="SemPLeS",
        version=openapi.VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # Swagger UI would come from a CDN; service.api.pages has a list of the calls
        redoc_url=None,
        # More is no image and a few choices, but a mistake or an attack.
        form_limits={"max_files": 1, "max_fields": 100, "max_part_size": 2**17},
    )
    app.state.jobs = Jobs(redis, blobs, _limits(settings))
    app.state.batches = Batches(redis, blobs, _limits(settings), _zip_limits(settings))
    app.state.catalog = Catalog(redis, default=settings.model)
    app.state.store_probe = StoreProbe(blobs)
    app.state.projects = Projects(redis)
    app.state.task_images = TaskImages(
        settings.label_studio_url, settings.label_studio_token, settings.max_body_bytes
    )
    app.state.callback_rules = CallbackRules(
        bool(settings.webhook_secret), settings.webhook_private, resolve
    )
    ring = open_ring(settings)
    meters = HttpMeters()
    meters.registry.register(RedisCollector(redis))
    app.state.registry = meters.registry
    # The last one added is the outermost: it sees what the others refuse, and bodies are bounded for all of them.
    app.add_middleware(SpoolPlaces, most=settings.max_zips)
    if settings.rate:
        app.add_middleware(RateLimit, rate=parse_rate(settings.rate), redis=redis)
    if ring is not None:
        app.add_middleware(KeyCheck, ring=ring)
    app.add_middleware(
        BodyLimit,
        bounds=_body_bounds(settings, settings.max_body_bytes),
        others={"/batches": _body_bounds(settings, settings.max_batch_bytes)},
    )
    app.add_middleware(Observe, meters=meters)
    app.add_middleware(SecurityHeaders)
    errors.install(app)
    openapi.install(app)
    for router in (
        masks.router,
        jobs.router,
        results.router,
        jobs.router,
        batches.router,
        batches.router,
        label_studio.router,
        system.models_router,
        system.metrics_router,
    ):
        app.include_router(router, dependencies=SCHEMES if ring is not None else ())
    app.include_router(system.health_router)
    app.include_router(pages.router)

    return app


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_queue=settings.max_queue,
        job_timeout=settings.job_timeout,
        job_timeout_per_megapixel=settings.job_timeout_per_megapixel,
        job_timeout_max=settings.job_timeout_max,
        max_pixels=settings.max_pixels,
    )


def _zip_limits(settings: Settings) -> ZipLimits:
    return ZipLimits(
        photos=settings.max_batch_photos,
        photo_bytes=settings.max_body_bytes,
        total_bytes=UNPACKED_FACTOR * settings.max_batch_bytes,
    )


def _body_bounds(settings: Settings, max_bytes: int) -> BodyBounds:
    return BodyBounds(
        max_bytes=max_bytes,
        seconds=settings.body_seconds,
        rate=settings.body_rate,
    )
