"""What can be asked for."""

from __future__ import annotations

from fastapi import APIRouter

from service.dependencies import CatalogDependency
from service.errors import ProblemDocument
from service.schemas import ModelDocument, ModelList, ModelSummary

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
