"""Builds the API: state, middleware, routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

from anyio import CapacityLimiter
from fastapi import FastAPI
from redis import Redis
from starlette.middleware.cors import CORSMiddleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.api import batches, errors, jobs, label_studio, masks, openapi, pages, results, system
from service.api.forms import CallbackRules
from service.api.state import AppState
from service.batches.service import BatchService
from service.batches.slots import UploadSlots, clean_periodically
from service.batches.upload import ZipLimits
from service.jobs.model_registry import ModelRegistry
from service.jobs.service import JobService
from service.jobs.watch import EventStream
from service.label_studio import LabelStudioBackend, TaskImages
from service.metrics import HttpMetrics, RedisCollector
from service.middleware.auth import SCHEMES, ApiKeys, KeyCheck, load_keys
from service.middleware.body_limit import BodyBounds, BodyLimit
from service.middleware.conventions import HeadAsGet, PathPrefix, parse_networks
from service.middleware.observability import RequestLogger, SecurityHeaders
from service.middleware.rate_limit import RateLimit, parse_rate
from service.settings import Settings
from service.store_probe import StoreProbe
from worker.queue.jobs import Limits
from worker.storage import BlobStore
from worker.webhooks.urls import Resolve, resolve_host

_MAX_OPEN_ZIPS: Final = 2  # read, and made, at once: each takes a thread and some memory or disk
_UNPACKED_FACTOR: Final = 4  # photos are compressed already and do not grow
_EXPOSED_HEADERS: Final = ("Location", "Retry-After", "ETag", "X-Request-ID", "RateLimit", "RateLimit-Policy")
_DESCRIPTION: Final = """Images with class labels go in, pixel masks come out.

Post an image with the labels of what it shows (`/pseudo-mask`), or without any to a model that finds out itself
(`/segment`); then ask for its job, or wait for the mask itself. Post a zip of many with their labels to `/batches`.
Errors are `application/problem+json`; their types are explained under `/problems/…`.
"""


def create_app(settings: Settings, redis: Redis, blobs: BlobStore, *, resolve: Resolve = resolve_host) -> FastAPI:
    """Return the API; ``resolve`` finds the addresses of a callback's host.

    Raises:
        ValueError: if the settings name API keys or a rate that cannot be read, or a root path like a call's.
    """
    keys = load_keys(settings)
    metrics = HttpMetrics()
    metrics.registry.register(RedisCollector(redis))
    state = _state(settings, redis, blobs, metrics, resolve)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        cleaning = asyncio.create_task(clean_periodically(settings.spool))
        yield
        cleaning.cancel()
        await state.events.close()

    app = FastAPI(
        title="SemPLeS",
        version=openapi.VERSION,
        description=_DESCRIPTION,
        lifespan=lifespan,
        dependencies=SCHEMES if keys is not None else (),
        docs_url=None,  # Swagger UI would come from a CDN; the page at /docs lists the calls
        redoc_url=None,
        # An image and a few fields: more is a mistake or an attack.
        form_limits={"max_files": 1, "max_fields": 100, "max_part_size": 2**17},
    )
    app.state.api = state
    _add_middleware(app, settings, redis, keys, metrics)
    errors.install(app)
    openapi.install(app)
    routers = [module.router for module in (masks, jobs, results, batches, label_studio, system, pages)]
    _check_prefix(settings.root_path, [str(getattr(route, "path", "")) for each in routers for route in each.routes])
    for router in routers:
        app.include_router(router)
    return app


def _state(settings: Settings, redis: Redis, blobs: BlobStore, metrics: HttpMetrics, resolve: Resolve) -> AppState:
    limits = Limits(
        max_queue=settings.max_queue,
        job_timeout=settings.job_timeout,
        job_timeout_per_megapixel=settings.job_timeout_per_megapixel,
        job_timeout_max=settings.job_timeout_max,
        max_pixels=settings.max_pixels,
    )
    zips = ZipLimits(
        photos=settings.max_batch_photos,
        photo_bytes=settings.max_body_bytes,
        total_bytes=_UNPACKED_FACTOR * settings.max_batch_bytes,
    )
    job_service = JobService(redis, blobs, limits)
    models = ModelRegistry(redis, default=settings.model)
    events = EventStream(settings.redis_url, max_listening=settings.max_listening, max_waiting=settings.max_waiting)
    decoders = CapacityLimiter(settings.decoders)
    images = TaskImages(settings.label_studio_url, settings.label_studio_token, settings.max_body_bytes)
    return AppState(
        jobs=job_service,
        batches=BatchService(redis, blobs, limits, zips),
        models=models,
        events=events,
        callbacks=CallbackRules(bool(settings.webhook_secret), settings.webhook_private, resolve),
        label_studio=LabelStudioBackend(redis, job_service, models, events, decoders, images),
        store_probe=StoreProbe(blobs),
        metrics=metrics.registry,
        decoders=decoders,
        unpackers=CapacityLimiter(_MAX_OPEN_ZIPS),
        packers=CapacityLimiter(_MAX_OPEN_ZIPS),
    )


def _add_middleware(app: FastAPI, settings: Settings, redis: Redis, keys: ApiKeys | None, metrics: HttpMetrics) -> None:
    """Add the middleware, the innermost first: the outer ones see what the inner ones refuse."""
    app.add_middleware(HeadAsGet)
    app.add_middleware(UploadSlots, slots=settings.max_zips)
    if settings.rate:
        app.add_middleware(RateLimit, rate=parse_rate(settings.rate), redis=redis)
    if keys is not None:
        app.add_middleware(KeyCheck, keys=keys)
    bounds, of_batches = (
        BodyBounds(size, settings.body_seconds, settings.body_rate)
        for size in (settings.max_body_bytes, settings.max_batch_bytes)
    )
    app.add_middleware(BodyLimit, bounds=bounds, by_path={"/batches": of_batches})
    app.add_middleware(RequestLogger, metrics=metrics)
    app.add_middleware(SecurityHeaders)
    if origins := [each.strip() for each in settings.cors_origins.split(",") if each.strip()]:
        # No credentials: a key is a header that the page itself adds.
        methods, exposed = ("GET", "HEAD", "POST", "DELETE"), _EXPOSED_HEADERS
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=["*"], expose_headers=exposed
        )
    if settings.trusted_proxies:
        # Uvicorn's, but here: PathPrefix must see the proxy's address, which this replaces by the client's.
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=settings.trusted_proxies)
    app.add_middleware(PathPrefix, prefix=settings.root_path, trusted=parse_networks(settings.trusted_proxies))


def _check_prefix(prefix: str, paths: Iterable[str]) -> None:
    """Raise ValueError if a path below the prefix could also be a call without it."""
    if prefix and any(path.split("/")[:2] == prefix.split("/")[:2] for path in paths):
        raise ValueError(f"expected a root path that does not begin as a call of the API does, got {prefix!r}")
