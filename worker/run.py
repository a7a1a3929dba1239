"""A worker's life: load, warm up, work, stop. Free of torch: how to load is an argument."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
from redis.exceptions import RedisError

from models.photos import Labeled, Unlabeled
from worker.blobs import BlobError, BlobStore
from worker.loop import LeaseWorker
from worker.presence import Explanation, ModelInfo
from worker.protocol import BLOB_SECONDS
from worker.pulse import Pulse
from worker.queues import open_redis
from worker.runtime import PredictorLike, Runtime, install
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

SWEEP_SECONDS = 600.0

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
    runtime = Runtime(predictor, model, blobs, settings.name, settings.max_pixels)
    install(runtime)
    worker = LeaseWorker(
        # Not twice blindly: what a lost answer means is looked up by whoever asked.
        open_redis(settings.redis_url, retries=0),
        runtime,
        sizes=settings.sizes,
        explanation=explanation,
        lease=settings.lease,
    )
    # Not in the worker's own pulse: a large store takes longer to walk than a lease lasts.
    sweeper = Pulse(
        lambda: _sweep(blobs), interval=SWEEP_SECONDS, name="sweeper", on_death=lambda _error: None
    )
    sweeper.start()
    try:
        return worker.serve()
    except RedisError as error:
        log.error("lost Redis: %s", error)
        return False


def canary(predictor: PredictorLike) -> None:
    """Send a small gray image through all that the model can do, which also warms it up.

    Raises:
        RuntimeError: if what comes out has another size.
    """
    image = np.full((64, 96, 3), 128, dtype=np.uint8)
    first = predictor.info.classes.names[:1]
    half_done = [*predictor.activate([Labeled(image, first, predictor.options())])]
    if predictor.info.can_segment:
        unlabeled = Unlabeled(image, predictor.segment_options())
        half_done += predictor.activate_segments([unlabeled])
    for each in half_done:
        shape = predictor.finish(each).label_map.shape
        if shape != image.shape[:2]:
            raise RuntimeError(f"expected a label map of {image.shape[:2]}, got {shape}")


def _reach_stores(settings: WorkerSettings) -> BlobStore:
    """Look for Redis and the blob store before the model is loaded, which takes longer."""
    try:
        open_redis(settings.redis_url).ping()
        return BlobStore.open(settings.blobs)
    except (RedisError, BlobError, ValueError) as error:
        raise WorkerStartError(f"cannot reach {settings.redis_url}: {error}") from error


def _sweep(blobs: BlobStore) -> None:
    deleted = blobs.sweep(now=datetime.now(UTC), lifetime=timedelta(seconds=BLOB_SECONDS))
    if deleted:
        log.info("deleted %d blobs whose time was over", deleted)
