"""Routes of Label Studio's ML backend protocol; in a project's settings the backend's URL ends in /label-studio."""

from __future__ import annotations

from typing import Any, Final, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from service.api.errors import problem_responses
from service.api.state import State

router = APIRouter(prefix="/label-studio", tags=["label studio"])

_POST: Final = problem_responses(400, 409, 413, 422, 503)
_CONFIG: Final = (
    '<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image">'
    '<Label value="cat"/></BrushLabels></View>'
)


class Setup(BaseModel):
    """Label Studio's message when a project is connected or its interface changes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"project": "1.1764045380", "schema": _CONFIG}]})

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
                    "tasks": [{"id": 1, "data": {"image": "/data/upload/1/a.jpg", "labels": "cat"}}],
                    "project": "1.1764045380",
                    "label_config": _CONFIG,
                }
            ]
        }
    )

    tasks: list[dict[str, Any]] = Field(max_length=100)
    project: str = Field(default="", max_length=200)
    label_config: str = Field(max_length=2**20)
    params: dict[str, Any] = Field(default={}, description="Has a `context` where a person waits for the answer.")


class Predictions(BaseModel):
    """One prediction for each task, in their order."""

    results: list[dict[str, Any]]


class BackendHealth(BaseModel):
    """The process is up."""

    status: Literal["UP"] = "UP"
    model_class: str = "SemPLeS"


@router.get("/health")
async def get_backend_health() -> BackendHealth:
    """Say that the process is up; `/ready` says more."""
    return BackendHealth()


@router.post("/setup", responses=_POST)
def post_setup(setup: Setup, state: State) -> SetUp:
    """Check a project's labeling interface, and keep which field of its tasks holds labels."""
    version = state.label_studio.set_up(setup.project, setup.config, setup.extra_params)
    return SetUp(model_version=version)


@router.post("/predict", responses=_POST)
async def post_predict(asked: Predict, state: State) -> Predictions:
    """Predict tasks' masks as brush regions, or polygons where the interface has no brush.

    Labels come from choices in a task's annotations and from a field of its data; a task without any is segmented
    without labels. Images are `data:` URLs, or lie on the Label Studio that this service is configured for. A task that
    cannot be predicted has an `error` that says why, and no `result`: Label Studio stores nothing and asks again.
    """
    results = await state.label_studio.predict(
        asked.tasks,
        project=asked.project,
        config=asked.label_config,
        interactive=asked.params.get("context") is not None,
    )
    return Predictions(results=results)


@router.post("/webhook", status_code=204)
async def post_event() -> None:
    """Take an event of a project, which Label Studio posts for each annotation and task; none matters here."""
