"""A worker's life: load, warm up, work, stop. Free of torch: how to load is an argument."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from redis.exceptions import RedisError

from worker.blobs import BlobError, BlobStore
from worker.loop import LeaseWorker
from worker.presence import Explanation, ModelInfo
from worker.queues import open_redis
from worker.runtime import PredictorLike, Runtime, install
from worker.settings import WorkerSettings

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
    install(Runtime(predictor, model, blobs, settings.name, settings.max_pixels))
    worker = LeaseWorker(
        open_redis(settings.redis_url),
        name=settings.name,
        model=model,
        device=str(predictor.device),
        explanation=explanation,
        lease=settings.lease,
    )
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
    outcomes = [predictor.pseudo_mask(image, first, predictor.options())]
    if predictor.info.can_segment:
        outcomes.append(predictor.segment(image, predictor.segment_options()))
    for segmentation in outcomes:
        shape = segmentation.label_map.shape
        if shape != image.shape[:2]:
            raise RuntimeError(f"expected a label map of {image.shape[:2]}, got {shape}")


def _reach_stores(settings: WorkerSettings) -> BlobStore:
    """Look for Redis and the blob store before the model is loaded, which takes longer."""
    try:
        open_redis(settings.redis_url).ping()
        return BlobStore.open(settings.blobs)
    except (RedisError, BlobError, ValueError) as error:
        raise WorkerStartError(f"cannot reach {settings.redis_url}: {error}") from error
