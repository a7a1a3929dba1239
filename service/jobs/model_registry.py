"""The models that workers announce, and the one that a request is given."""

from __future__ import annotations

from collections.abc import Sequence

from redis import Redis

from service.api.errors import ProblemError, invalid_field
from worker.queue.registry import (
    Explanation,
    ModelInfo,
    WorkerInfo,
    explanation_of,
    known_models,
    live_workers,
)
from worker.queue.schema import Task


class ModelRegistry:
    """Models and live workers, read from Redis with each call; all methods raise RedisError.

    ``default`` names the model for requests that name none; empty for one with a live worker.
    """

    def __init__(self, redis: Redis, *, default: str = "") -> None:
        self._redis = redis
        self._default = default

    def workers(self) -> tuple[WorkerInfo, ...]:
        """Return the live workers without trouble, each with a loaded model."""
        return tuple(worker for worker in live_workers(self._redis) if not worker.trouble)

    def require_worker(self) -> tuple[WorkerInfo, ...]:
        """Return ``workers``; ProblemError if there is none, with the trouble of those that live."""
        alive = live_workers(self._redis)
        ready = tuple(worker for worker in alive if not worker.trouble)
        if ready:
            return ready
        troubles = "; ".join(f"worker {worker.name}: {worker.trouble}" for worker in alive)
        raise ProblemError("not-ready", troubles or "no live worker has loaded a model")

    def models(self) -> tuple[ModelInfo, ...]:
        """Return all announced models."""
        return known_models(self._redis)

    def named(self, name: str) -> ModelInfo:
        """Return the model of a name; ProblemError if there is none."""
        models = self._announced()
        if name not in models:
            detail = f"expected one of {', '.join(models)}, got {name[:80]!r}"
            raise ProblemError("unknown-model", detail, models=list(models))
        return models[name]

    def prompt_neighbors(self, model: ModelInfo) -> Explanation:
        """Return the nouns nearest to what a model's background prompts learned."""
        return explanation_of(self._redis, model)

    def default(self, task: Task) -> ModelInfo | None:
        """Return the model for requests that name none: as configured, else with a live worker, else any."""
        return self._default_of([model for model in self.models() if model.can(task)])

    def choose(self, name: str | None, task: Task) -> ModelInfo:
        """Return the model for a request; ProblemError if there is none, or it cannot do the task."""
        models = self._announced()
        if name is not None and name not in models:
            raise invalid_field("model", f"expected one of {', '.join(models)}, got {name[:80]!r}")
        able = [each for each in models.values() if each.can(task)]
        model = models[name] if name is not None else self._default_of(able)
        if model is None or not model.can(task):
            raise _cannot_segment(name, [each.name for each in able])
        return model

    def _default_of(self, models: Sequence[ModelInfo]) -> ModelInfo | None:
        for model in models:
            if model.name == self._default:
                return model
        if len(models) > 1:  # a single one needs no look at the workers
            alive = {worker.model for worker in self.workers()}
            models = [model for model in models if model.ref in alive] or models
        return next(iter(models), None)

    def _announced(self) -> dict[str, ModelInfo]:
        models = {model.name: model for model in self.models()}
        if not models:
            raise ProblemError("not-ready", "no worker has announced a model yet")
        return models


def _cannot_segment(name: str | None, able: list[str]) -> ProblemError:
    subject = f"model {name!r} has no segmenter" if name is not None else "no segmenter is served"
    others = f"; these models have one: {', '.join(able)}" if able else ""
    return ProblemError("cannot-segment", subject + others, models=able)
