"""Label Studio's ML backend: tasks in, predictions out, through jobs like any other."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import numpy as np
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import UploadFile
from PIL import Image
from redis import Redis
from rq.job import Job

from models.data.classes import UnknownLabelError
from models.data.images import ImageError
from service.catalog import Catalog
from service.errors import ProblemError, to_problem
from service.jobs import Jobs
from service.labeling import Labeling, image_labels, parse_labeling, regions
from service.task_images import TaskImages
from service.uploads import Checked, ImageForm, PseudoMaskForm, SegmentForm, build_request
from service.waiting import ResultWaiter
from worker.queue.registry import ModelInfo

LABELS_FIELD: Final = "labels"
WAIT_SECONDS: Final = 60.0
_PROJECT_SECONDS: Final = 90 * 24 * 3600

Prediction = dict[str, Any]


class Projects:
    """What Label Studio said of its projects when it connected: which field of their tasks holds labels."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def remember(self, project: str, field: str) -> None:
        """Note a project's field."""
        self._redis.set(_key(project), field, ex=_PROJECT_SECONDS)

    def labels_field(self, project: str) -> str:
        """Return a project's field; LABELS_FIELD if it named none."""
        stored = cast("bytes | None", self._redis.getex(_key(project), ex=_PROJECT_SECONDS))
        return LABELS_FIELD if stored is None else stored.decode()


@dataclass(frozen=True)
class Backend:
    """Makes predictions.

    Attributes:
        jobs, catalog, waiter, decoders: as in ``service.app``.
        images: fetches tasks' images.
        projects: what is known of them.
    """

    jobs: Jobs
    catalog: Catalog
    waiter: ResultWaiter
    decoders: CapacityLimiter
    images: TaskImages
    projects: Projects

    async def predict(
        self, tasks: Sequence[Mapping[str, Any]], *, project: str, config: str
    ) -> list[Prediction]:
        """Return a prediction for each task; an empty one with an ``error`` where that is not possible.

        What is not done within a minute is empty as well; asked again, it is there.

        Raises:
            ProblemError: if the interface is none, or no model is there, or the queue is full.
        """
        labeling = parse_labeling(config, field="label_config")
        field = await run_sync(self.projects.labels_field, project)
        submitted = [await self._submit(task, labeling, field) for task in tasks]
        deadline = time.monotonic() + WAIT_SECONDS
        return [
            each if isinstance(each, dict) else await self._prediction(*each, labeling, deadline)
            for each in submitted
        ]

    async def _submit(
        self, task: Mapping[str, Any], labeling: Labeling, field: str
    ) -> tuple[Job, ModelInfo] | Prediction:
        try:
            data = task.get("data")
            source = data.get(labeling.field) if isinstance(data, Mapping) else None
            content = await self.images.fetch(source)
            check = partial(self._check, task, content, field)
            checked, model = await run_sync(check, limiter=self.decoders)
        except (ProblemError, ImageError, UnknownLabelError) as error:
            problem = to_problem(error)
            if problem.kind.status >= 500:
                raise
            return {"result": [], "error": problem.detail}
        submit = partial(self.jobs.submit, checked.request, content, pixels=checked.pixels)
        return await run_sync(submit), model

    def _check(
        self, task: Mapping[str, Any], content: bytes, field: str
    ) -> tuple[Checked, ModelInfo]:
        model = self.catalog.choose(None, "pseudo_mask")
        labels = image_labels(task, model.class_list(), field=field)
        image = UploadFile(io.BytesIO(content))
        form: ImageForm
        if labels:
            form = PseudoMaskForm(image=image, labels=labels)
        else:
            model, form = self.catalog.choose(None, "segment"), SegmentForm(image=image)
        limit = self.jobs.limits.max_pixels
        return build_request(form, content, model, max_pixels=limit), model

    async def _prediction(
        self, job: Job, model: ModelInfo, labeling: Labeling, deadline: float
    ) -> Prediction:
        await self.waiter.wait(job.id, deadline - time.monotonic())
        empty = {"model_version": version(model), "result": []}
        try:
            make = partial(self._describe, job.id, model, labeling)
            return empty | await run_sync(make, limiter=self.decoders)
        except ProblemError as problem:  # not done yet, or failed
            return empty | {"error": problem.detail}

    def _describe(self, job_id: str, model: ModelInfo, labeling: Labeling) -> Prediction:
        job = self.jobs.finished(job_id)
        mask = self.jobs.results(job, job.result.options).mask()
        label_map = np.array(Image.open(io.BytesIO(mask), formats=("PNG",)))
        found = {
            each.index: each.confidence
            for each in job.result.classes
            if each.confidence is not None
        }
        made: Prediction = {"result": regions(labeling, label_map, model.class_list(), list(found))}
        return made | ({"score": min(found.values())} if found else {})


def version(model: ModelInfo) -> str:
    """Return what Label Studio knows a model by."""
    return f"{model.name} {model.version}"


def chosen_field(extra_params: Any) -> str:
    """Return the field of tasks' data that holds labels, as a setup's extra parameters name it: ``labels_field``."""
    if isinstance(extra_params, str):
        try:
            extra_params = json.loads(extra_params)
        except (ValueError, RecursionError):
            return LABELS_FIELD
    field = extra_params.get("labels_field") if isinstance(extra_params, Mapping) else None
    return field if isinstance(field, str) and 0 < len(field) <= 200 else LABELS_FIELD


def _key(project: str) -> str:
    return f"semples:label-studio:{hashlib.sha256(project.encode()).hexdigest()[:32]}"
