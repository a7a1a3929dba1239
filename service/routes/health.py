"""Is the process up, can it do its work, and what do its errors mean."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter
from pydantic import BaseModel

from service.dependencies import CatalogDependency, StoreProbeDependency
from service.errors import PROBLEMS, ProblemDocument, ProblemError
from service.schemas import Health, Readiness

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
