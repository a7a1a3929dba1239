"""Who is there: workers announce themselves and their model; the service reads it. Wire layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar, cast

from pydantic import BaseModel, Field
from redis import Redis

from models.bundle.manifest import ModelDescription, NearNoun
from worker.queue.schema import LEASE_SECONDS, ModelRef, Record, Task

WORKERS_KEY = "semples:workers"
MODELS_KEY = "semples:models"

MODEL_SECONDS = 600
"""How long a model is known after its last worker was seen: a restart must not turn jobs away."""

R = TypeVar("R", bound=BaseModel)


def worker_key(worker: str) -> str:
    """Return the key that holds a worker's lease and description."""
    return f"semples:worker:{worker}"


def model_key(model: str) -> str:
    """Return the key that holds what a model's workers say of it."""
    return f"semples:model:{model}"


def janitor_key(host: str) -> str:
    """Return the key that is there while the janitor on a host is at work."""
    return f"semples:janitor:{host}"


def explanation_key(version: str) -> str:
    """Return the key that holds what a model's background prompts learned; a version's never changes."""
    return f"semples:explanation:{version}"


class ModelInfo(ModelDescription):
    """A model as its workers announce it."""

    @property
    def ref(self) -> ModelRef:
        """The model's name and version."""
        return ModelRef(name=self.name, version=self.version)

    def can(self, task: Task) -> bool:
        """Return whether this model does a task."""
        return task == "pseudo_mask" or self.can_segment


class Explanation(Record):
    """What a model's background prompts learned: the nouns nearest to each, nearest first, by class name.

    Kept apart from ModelInfo, which every request reads: these are hundreds of nouns that few ask for.
    """

    nearest_nouns: dict[str, tuple[NearNoun, ...]] = Field(default_factory=dict)


class WorkerInfo(Record):
    """A live worker with a warm model; its key expires when the lease does.

    Attributes:
        lease: seconds that this announcement holds.
        silent: seconds, when it was announced, since the main thread last got ahead.
        trouble: why it cannot be counted on, though it lives; empty if it can.
    """

    name: str
    model: ModelRef
    device: str
    host: str
    pid: int
    jobs_in_hand: int = 0
    lease: int = LEASE_SECONDS
    silent: float = 0.0
    trouble: str = ""


def announce(
    redis: Redis,
    worker: WorkerInfo,
    model: ModelInfo,
    explanation: Explanation | None = None,
    *,
    lease: int = LEASE_SECONDS,
) -> None:
    """Renew a worker's lease, of so many seconds, and what is known of its model."""
    explained = explanation_key(model.version)
    with redis.pipeline() as pipeline:
        pipeline.set(worker_key(worker.name), worker.model_dump_json(), ex=lease)
        pipeline.sadd(WORKERS_KEY, worker.name)
        pipeline.set(model_key(model.name), model.model_dump_json(), ex=MODEL_SECONDS)
        pipeline.sadd(MODELS_KEY, model.name)
        pipeline.expire(explained, MODEL_SECONDS)
        *_, known = pipeline.execute()
    if explanation is not None and not known:
        redis.set(explained, explanation.model_dump_json(), ex=MODEL_SECONDS)


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


def explanation_of(redis: Redis, model: ModelInfo) -> Explanation:
    """Return what a model's prompts learned; nothing if its workers have not said."""
    content = cast("bytes | None", redis.get(explanation_key(model.version)))
    return Explanation() if content is None else Explanation.model_validate_json(content)


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
    # A model's record is several KB and the same for days: parse it once, not with each request.
    return record.model_validate_json(content)


# A worker's samples on their way to the API, which alone is scraped. Wire layer.


def metrics_key(worker: str) -> str:
    """Return the key that holds a worker's samples."""
    return f"semples:metrics:{worker}"


def publish_metrics(redis: Redis, worker: str, text: bytes, *, lease: int) -> None:
    """Store a worker's samples, in Prometheus's text format, for as long as its lease holds."""
    redis.set(metrics_key(worker), text, ex=lease)


def published_metrics(redis: Redis, workers: Sequence[str]) -> dict[str, str]:
    """Return the samples of those workers that have published some, by worker."""
    if not workers:
        return {}
    texts = cast("list[bytes | None]", redis.mget([metrics_key(worker) for worker in workers]))
    return {
        worker: text.decode(errors="replace")
        for worker, text in zip(workers, texts, strict=True)
        if text is not None
    }
