"""Label Studio's ML backend protocol; in a project's settings the backend's URL ends in /label-studio."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from service.api.dependencies import (
    CatalogDependency,
    DecodersDependency,
    JobsDependency,
    WaiterDependency,
)
from service.api.errors import ProblemDocument
from service.label_studio import (
    Backend,
    Projects,
    TaskImages,
    chosen_field,
    parse_labeling,
    version,
)

router = APIRouter(prefix="/label-studio", tags=["label studio"])

_PROBLEM: dict[str, Any] = {"model": ProblemDocument}
_POST: dict[int | str, dict[str, Any]] = {code: _PROBLEM for code in (400, 409, 413, 422, 503)}
_CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image">'
    '<Label value="cat"/></BrushLabels></View>'
)


class Setup(BaseModel):
    """What Label Studio sends when a project is connected or its interface changes."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"project": "1.1764045380", "schema": _CONFIG}]}
    )

    project: str = Field(default="", max_length=200)
    config: str = Field(alias="schema", max_length=2**20)
    extra_params: Any = Field(default=None, description='Such as {"labels_field": "labels"}.')


class SetUp(BaseModel):
    """The model that predictions will come from."""

    model_version: str


class Predict(BaseModel):
    """Tasks to predict."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "tasks": [
                        {"id": 1, "data": {"image": "/data/upload/1/a.jpg", "labels": "cat"}}
                    ],
                    "project": "1.1764045380",
                    "label_config": _CONFIG,
                }
            ]
        }
    )

    tasks: list[dict[str, Any]] = Field(max_length=100)
    project: str = Field(default="", max_length=200)
    label_config: str = Field(max_length=2**20)


class Predictions(BaseModel):
    """One prediction for each task, in their order."""

    results: list[dict[str, Any]]


class BackendHealth(BaseModel):
    """The process is up."""

    status: Literal["UP"] = "UP"
    model_class: str = "SemPLeS"


async def _backend(
    request: Request,
    jobs: JobsDependency,
    catalog: CatalogDependency,
    waiter: WaiterDependency,
    decoders: DecodersDependency,
) -> Backend:
    state = request.app.state
    images, projects = cast("TaskImages", state.task_images), cast("Projects", state.projects)
    return Backend(jobs, catalog, waiter, decoders, images, projects)


BackendDependency = Annotated[Backend, Depends(_backend)]


@router.get("/health")
async def get_backend_health() -> BackendHealth:
    """Say that the process is up; `/ready` says more."""
    return BackendHealth()


@router.post("/setup", responses=_POST)
def post_setup(setup: Setup, backend: BackendDependency) -> SetUp:
    """Check a project's labeling interface, and remember which field of its tasks holds labels."""
    parse_labeling(setup.config, field="schema")
    model = backend.catalog.choose(None, "pseudo_mask")
    backend.projects.remember(setup.project, chosen_field(setup.extra_params))
    return SetUp(model_version=version(model))


@router.post("/predict", responses=_POST)
async def post_predict(asked: Predict, backend: BackendDependency) -> Predictions:
    """Predict tasks' masks as brush regions, or polygons where the interface has no brush.

    Labels come from choices in a task's annotations and from a field of its data; without any, the model's segmenter
    looks itself. Images are `data:` URLs, or lie on the Label Studio that this service is configured for. A task that
    cannot be predicted has an empty result, and says why in `error`.
    """
    results = await backend.predict(asked.tasks, project=asked.project, config=asked.label_config)
    return Predictions(results=results)
