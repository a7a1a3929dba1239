"""A worker's life: load, warm up, work, stop. Free of torch: how to load is an argument."""

from __future__ import annotations

import logging
from collections.abc import Callable

from redis.exceptions import RedisError

from worker.blobs import BlobError, BlobStore
from worker.canary import canary
from worker.logs import scrub
from worker.loop import LeaseWorker
from worker.presence import Explanation, ModelInfo
from worker.queues import open_redis
from worker.runtime import PredictorLike, Runtime, install
from worker.settings import WorkerSettings
from worker.sizes import Sizes, usual_batch
from worker.vitals import Vitals

log = logging.getLogger(__name__)

Load = Callable[[WorkerSettings], PredictorLike]


class WorkerStartError(Exception):
    """The worker cannot start; the message is one line for the operator."""


def run(settings: WorkerSettings, *, load: Load) -> bool:
    """Load the model, prove that it works, then work until told to stop.

    Readiness is announced only after the canary image went through the model.

    Args:
        settings: where everything is.
        load: makes the predictor, the slow part.

    Returns:
        Whether the worker stopped because it was asked to.

    Raises:
        WorkerStartError: if Redis, the blob store or the model is not to be had.
    """
    blobs = _reach_stores(settings)
    try:
        predictor = load(settings)
        canary(predictor)
        shown = predictor.info.to_json()
        model, explanation = ModelInfo.model_validate(shown), Explanation.model_validate(shown)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise WorkerStartError(f"cannot load bundle {settings.bundle!r}: {reason}") from error
    vitals = Vitals.of(predictor, settings)
    runtime = Runtime(
        predictor, model, blobs, settings.name, settings.max_pixels, meters=vitals.meters
    )
    install(runtime)
    batch = settings.batch or usual_batch(str(predictor.device))
    worker = LeaseWorker(
        # Not twice blindly: what a lost answer means is looked up by whoever asked.
        open_redis(settings.redis_url, retries=0),
        runtime,
        sizes=Sizes(batch=batch, threads=settings.job_threads),
        vitals=vitals,
        explanation=explanation,
        lease=settings.lease,
    )
    try:
        return worker.serve()
    except RedisError as error:
        log.error("lost Redis: %s", error)
        return False


def _reach_stores(settings: WorkerSettings) -> BlobStore:
    """Look for Redis and the blob store before the model is loaded, which takes longer."""
    try:
        open_redis(settings.redis_url).ping()
    except (RedisError, ValueError) as error:
        raise WorkerStartError(f"cannot reach {scrub(settings.redis_url)}: {error}") from error
    try:
        blobs = BlobStore.open(settings.blobs)
        # Without it every job would fail here, and no other worker could have it.
        blobs.check()
    except BlobError as error:
        raise WorkerStartError(f"cannot use {settings.blobs}: {error}") from error
    return blobs
