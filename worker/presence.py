"""Who is there: workers announce themselves and their model; the service reads it. Wire layer."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar, cast

from redis import Redis

from worker.protocol import (
    LEASE_SECONDS,
    MODEL_SECONDS,
    MODELS_KEY,
    WORKERS_KEY,
    ModelInfo,
    Record,
    WorkerInfo,
    model_key,
    worker_key,
)

R = TypeVar("R", bound=Record)


def announce(
    redis: Redis, worker: WorkerInfo, model: ModelInfo, *, lease: int = LEASE_SECONDS
) -> None:
    """Renew a worker's lease, of so many seconds, and what is known of its model."""
    with redis.pipeline() as pipeline:
        pipeline.set(worker_key(worker.name), worker.model_dump_json(), ex=lease)
        pipeline.sadd(WORKERS_KEY, worker.name)
        pipeline.set(model_key(model.name), model.model_dump_json(), ex=MODEL_SECONDS)
        pipeline.sadd(MODELS_KEY, model.name)
        pipeline.execute()


def withdraw(redis: Redis, worker: str) -> None:
    """Give a worker's lease back; its model stays known for a while."""
    with redis.pipeline() as pipeline:
        pipeline.delete(worker_key(worker))
        pipeline.srem(WORKERS_KEY, worker)
        pipeline.execute()


def live_workers(redis: Redis) -> tuple[WorkerInfo, ...]:
    """Return the workers whose lease holds, by name."""
    return _read(redis, WORKERS_KEY, worker_key(""), WorkerInfo)


def known_models(redis: Redis) -> tuple[ModelInfo, ...]:
    """Return the models that a worker has announced lately, by name."""
    return _read(redis, MODELS_KEY, model_key(""), ModelInfo)


def _read(redis: Redis, index: str, prefix: str, record: type[R]) -> tuple[R, ...]:
    names = sorted(cast("set[bytes]", redis.smembers(index)))
    if not names:
        return ()
    values = cast("list[bytes | None]", redis.mget([prefix.encode() + name for name in names]))
    expired = [name for name, value in zip(names, values, strict=True) if value is None]
    if expired:
        redis.srem(index, *expired)
    return tuple(_parse(record, value) for value in values if value is not None)


@lru_cache(maxsize=64)
def _parse(record: type[R], content: bytes) -> R:
    # A model's record is some 20 KB and the same for days: parse it once, not with each request.
    return record.model_validate_json(content)
