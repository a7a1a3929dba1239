"""What can be asked for."""

from __future__ import annotations

from fastapi import APIRouter

from service.dependencies import CatalogDependency
from service.errors import ProblemDocument
from service.schemas import ModelList, ModelSummary

router = APIRouter(tags=["models"])


@router.get("/models", responses={503: {"model": ProblemDocument}})
def get_models(catalog: CatalogDependency) -> ModelList:
    """List the models: classes with synonyms, defaults, measured metrics, licence, version.

    ``can_segment`` says whether ``POST /segment`` takes a model; its defaults are in ``segment``.
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
