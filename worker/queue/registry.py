"""Worker and model registry: workers announce themselves, their model and their metrics; the service reads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, TypeVar, cast

from pydantic import BaseModel, Field
from redis import Redis

from models.bundle.manifest import ModelDescription, NearNoun
from worker.queue.schema import LEASE_SECONDS, ModelRef, Record, Task

_WORKERS_KEY: Final = "semples:workers"
_MODELS_KEY: Final = "semples:models"
_MODEL_PREFIX: Final = "semples:model:"
_MODEL_SECONDS: Final = 600  # that a model outlives its last worker, for a restart

_R = TypeVar("_R", bound=BaseModel)


def worker_key(worker: str) -> str:
    """Return the key that holds a worker's lease and description."""
    return f"semples:worker:{worker}"


def janitor_key(host: str) -> str:
    """Return the key that exists while the janitor on a host works."""
    return f"semples:janitor:{host}"


def _explanation_key(version: str) -> str:
    """Return the key of a model version's Explanation, which never changes."""
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
    """The nouns nearest to each of a model's background prompts, nearest first, by class name.

    Kept apart from ModelInfo, which every request reads: these are hundreds of nouns that few requests need.
    """

    nearest_nouns: dict[str, tuple[NearNoun, ...]] = Field(default_factory=dict)


class WorkerInfo(Record):
    """A live worker with a loaded model; its key expires when the lease does."""

    name: str
    model: ModelRef
    device: str
    host: str
    pid: int
    jobs_in_hand: int = 0
    lease: int = LEASE_SECONDS  # seconds that this announcement holds
    silent: float = 0.0  # seconds since the main thread's last progress, when this was announced
    trouble: str = ""  # why the worker does not work, though its process lives; empty if it does


def announce(
    redis: Redis,
    worker: WorkerInfo,
    model: ModelInfo,
    explanation: Explanation | None = None,
    *,
    lease: int = LEASE_SECONDS,
) -> None:
    """Renew a worker's lease, in seconds, and its model's description."""
    explained = _explanation_key(model.version)
    with redis.pipeline() as pipeline:
        pipeline.set(worker_key(worker.name), worker.model_dump_json(), ex=lease)
        pipeline.sadd(_WORKERS_KEY, worker.name)
        pipeline.set(_MODEL_PREFIX + model.name, model.model_dump_json(), ex=_MODEL_SECONDS)
        pipeline.sadd(_MODELS_KEY, model.name)
        pipeline.expire(explained, _MODEL_SECONDS)
        *_, known = pipeline.execute()
    if explanation is not None and not known:
        redis.set(explained, explanation.model_dump_json(), ex=_MODEL_SECONDS)


def withdraw(redis: Redis, worker: str) -> None:
    """Delete a worker's lease; its model stays known for a while."""
    with redis.pipeline() as pipeline:
        pipeline.delete(worker_key(worker))
        pipeline.srem(_WORKERS_KEY, worker)
        pipeline.execute()


def live_workers(redis: Redis) -> tuple[WorkerInfo, ...]:
    """Return the workers whose lease has not expired, by name."""
    return _read(redis, _WORKERS_KEY, worker_key(""), WorkerInfo)


def known_models(redis: Redis) -> tuple[ModelInfo, ...]:
    """Return the models that workers have announced in the last ten minutes, by name."""
    return _read(redis, _MODELS_KEY, _MODEL_PREFIX, ModelInfo)


def explanation_of(redis: Redis, model: ModelInfo) -> Explanation:
    """Return a model's Explanation; an empty one if its workers have not announced any."""
    content = cast("bytes | None", redis.get(_explanation_key(model.version)))
    return Explanation() if content is None else Explanation.model_validate_json(content)


def _read(redis: Redis, index: str, prefix: str, record: type[_R]) -> tuple[_R, ...]:
    names = sorted(cast("set[bytes]", redis.smembers(index)))
    if not names:
        return ()
    values = cast("list[bytes | None]", redis.mget([prefix.encode() + name for name in names]))
    expired = [name for name, value in zip(names, values, strict=True) if value is None]
    if expired:
        redis.srem(index, *expired)
    return tuple(_parse(record, value) for value in values if value is not None)


@lru_cache(maxsize=64)
def _parse(record: type[_R], content: bytes) -> _R:
    # A model's record is several KB and the same for days: it is parsed once, not with each request.
    return record.model_validate_json(content)


def _metrics_key(worker: str) -> str:
    """Return the key of a worker's metrics, in Prometheus's text format; the API alone is scraped."""
    return f"semples:metrics:{worker}"


def publish_metrics(redis: Redis, worker: str, text: bytes, *, lease: int) -> None:
    """Store a worker's metrics until its lease expires."""
    redis.set(_metrics_key(worker), text, ex=lease)


def published_metrics(redis: Redis, workers: Sequence[str]) -> dict[str, str]:
    """Return the metrics of those workers that have published some, by worker."""
    if not workers:
        return {}
    texts = cast("list[bytes | None]", redis.mget([_metrics_key(worker) for worker in workers]))
    return {
        worker: text.decode(errors="replace") for worker, text in zip(workers, texts, strict=True) if text is not None
    }
