"""What can be asked for."""

from __future__ import annotations

from fastapi import APIRouter

from service.dependencies import JobsDependency
from service.errors import ProblemDocument
from service.schemas import ModelList, ModelSummary

router = APIRouter(tags=["models"])


@router.get("/models", responses={503: {"model": ProblemDocument}})
def get_models(jobs: JobsDependency) -> ModelList:
    """List the models: classes with synonyms, thresholds, measured metrics, licence, version."""
    alive = {worker.model for worker in jobs.workers()}
    default = jobs.default_model()
    return ModelList(
        default=default.name if default else None,
        models=tuple(
            ModelSummary(ready=model.ref in alive, model=model) for model in jobs.models()
        ),
    )
