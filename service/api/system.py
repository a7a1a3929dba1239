"""Routes of the system: health, readiness, problem types, models, metrics."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, Request, Response
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from service.api.errors import PROBLEMS, ProblemError, problem_responses
from service.api.schemas import (
    Health,
    ModelDocument,
    ModelList,
    ModelSummary,
    ProblemDescription,
    Readiness,
)
from service.api.state import State

router = APIRouter()


@router.get("/health", tags=["health"])
async def get_health() -> Health:
    """Say that the process is up; nothing else is looked at."""
    try:
        return Health(version=version("semples"))
    except PackageNotFoundError:
        return Health(version="unknown")


@router.get("/ready", tags=["health"], responses=problem_responses(503))
def get_ready(state: State) -> Readiness:
    """Say that Redis answers, a live worker has a model and makes progress, and the blob store can be written."""
    workers = state.models.require_worker()
    state.store_probe.require_writable()
    return Readiness(workers=workers)


@router.get("/problems/{name}", tags=["health"], responses=problem_responses(404))
async def get_problem(request: Request, name: str) -> ProblemDescription:
    """Say what a problem's type means and what to do about it."""
    kind = PROBLEMS.get(name)
    if kind is None:
        raise ProblemError("not-found", "no such type of problem")
    root = request.scope.get("root_path", "")
    return ProblemDescription(type=kind.path(root), status=kind.status, title=kind.title, advice=kind.advice)


@router.get("/models", tags=["models"], responses=problem_responses(503))
def get_models(state: State) -> ModelList:
    """List the models: classes with synonyms, defaults, measured metrics, licence, version.

    ``can_segment`` says whether ``POST /segment`` takes a model; its defaults are in ``segment``, and ``untaught`` are
    the classes that it never finds, since too few photos showed them. ``open_vocabulary`` says whether the model takes
    ``vocabulary=open``. What its prompts learned is under ``/models/{name}``.
    """
    registry = state.models
    alive = {worker.model for worker in registry.workers()}
    default, segment = registry.default("pseudo_mask"), registry.default("segment")
    return ModelList(
        default=default.name if default else None,
        default_segment=segment.name if segment else None,
        models=tuple(ModelSummary(ready=model.ref in alive, model=model) for model in registry.models()),
    )


@router.get("/models/{name}", tags=["models"], responses=problem_responses(404, 503))
def get_model(name: str, state: State) -> ModelDocument:
    """Describe one model, with the nouns nearest to what the background prompt of each class learned."""
    model = state.models.named(name)
    alive = {worker.model for worker in state.models.workers()}
    nouns = state.models.prompt_neighbors(model).nearest_nouns
    return ModelDocument(ready=model.ref in alive, model=model, nearest_nouns=nouns)


@router.get("/metrics", tags=["health"], response_class=Response)
def get_metrics(state: State) -> Response:
    """Return all samples in Prometheus's text format; see docs/operations.md."""
    return Response(generate_latest(state.metrics), media_type=CONTENT_TYPE_PLAIN_0_0_4)
