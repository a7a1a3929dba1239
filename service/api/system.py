"""Is the process up, can it do its work, and what do its errors mean."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, Request, Response
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel

from service.api.dependencies import CatalogDependency, StoreProbeDependency
from service.api.errors import PROBLEMS, ProblemDocument, ProblemError
from service.api.schemas import Health, ModelDocument, ModelList, ModelSummary, Readiness

health_router = APIRouter(tags=["health"])


class ProblemDescription(BaseModel):
    """What a problem's type means."""

    type: str
    status: int
    title: str
    advice: str


@health_router.get("/health")
async def get_health() -> Health:
    """Say that the process is up; nothing else is looked at."""
    try:
        return Health(version=version("semples"))
    except PackageNotFoundError:
        return Health(version="unknown")


@health_router.get("/ready", responses={503: {"model": ProblemDocument}})
def get_ready(catalog: CatalogDependency, store: StoreProbeDependency) -> Readiness:
    """Say that Redis answers, a live worker has a warm model and gets ahead, and the blob store can be written."""
    workers = catalog.require_worker()
    store.require_writable()
    return Readiness(workers=workers)


@health_router.get("/problems/{name}", responses={404: {"model": ProblemDocument}})
async def get_problem(name: str) -> ProblemDescription:
    """Say what a problem's type means and what to do about it."""
    kind = PROBLEMS.get(name)
    if kind is None:
        raise ProblemError("not-found", "no such type of problem")
    return ProblemDescription(
        type=f"/problems/{kind.name}", status=kind.status, title=kind.title, advice=kind.advice
    )


# What can be asked for.

models_router = APIRouter(tags=["models"])


@models_router.get("/models", responses={503: {"model": ProblemDocument}})
def get_models(catalog: CatalogDependency) -> ModelList:
    """List the models: classes with synonyms, defaults, measured metrics, licence, version.

    ``can_segment`` says whether ``POST /segment`` takes a model; its defaults are in ``segment``. ``open_vocabulary``
    says whether it takes ``vocabulary=open``. What its prompts learned is under ``/models/{name}``.
    """
    alive = {worker.model for worker in catalog.workers()}
    default, segment = catalog.default("pseudo_mask"), catalog.default("segment")
    return ModelList(
        default=default.name if default else None,
        default_segment=segment.name if segment else None,
        models=tuple(
            ModelSummary(ready=model.ref in alive, model=model) for model in catalog.models()
        ),
    )


@models_router.get(
    "/models/{name}", responses={404: {"model": ProblemDocument}, 503: {"model": ProblemDocument}}
)
def get_model(name: str, catalog: CatalogDependency) -> ModelDocument:
    """Describe one model, with the nouns nearest to what the background prompt of each class learned."""
    model = catalog.named(name)
    alive = {worker.model for worker in catalog.workers()}
    explanation = catalog.explanation(model)
    return ModelDocument(
        ready=model.ref in alive, model=model, nearest_nouns=explanation.nearest_nouns
    )


# What Prometheus scrapes: the API, the queues and all live workers.

metrics_router = APIRouter(tags=["health"])


@metrics_router.get("/metrics", response_class=Response)
def get_metrics(request: Request) -> Response:
    """Return all samples in Prometheus's text format; see docs/operations.md."""
    text = generate_latest(request.app.state.registry)
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)
