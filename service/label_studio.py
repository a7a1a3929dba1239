"""Label Studio's ML backend: tasks in, predictions out, through jobs like any other."""

from __future__ import annotations

import asyncio
import binascii
import hashlib
import io
import json
import time
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast
from urllib.parse import unquote_to_bytes, urljoin, urlsplit
from xml.etree import ElementTree

import httpx
import numpy as np
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import UploadFile
from numpy.typing import NDArray
from PIL import Image
from redis import Redis
from rq.job import Job

from models.data.classes import ClassList, UnknownLabelError
from models.data.images import ImageError
from models.data.labels import split_labels
from models.data.voc import parse_xml
from models.exports.label_studio import Tags, brush_region, polygon_regions
from service.api.errors import ProblemError, invalid_field, to_problem
from service.api.forms import Checked, ImageForm, PseudoMaskForm, SegmentForm, build_request
from service.jobs.model_registry import Catalog
from service.jobs.service import Jobs
from service.jobs.watch import ResultWaiter
from worker.queue.registry import ModelInfo

# A Label Studio project's labeling interface: where its tasks' images are and what regions are to be called. Pure.


@dataclass(frozen=True)
class Control:
    """A tag for regions: its name, and its labels."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Labeling:
    """What of an interface matters here.

    Attributes:
        image: name of the image's tag.
        field: of a task's data that holds the image.
        brush: the tag for brush regions, if there is one.
        polygon: the tag for polygons, if there is one.
    """

    image: str
    field: str
    brush: Control | None
    polygon: Control | None


def parse_labeling(config: str, *, field: str) -> Labeling:
    """Read an interface.

    Args:
        config: its XML.
        field: of the request, for errors.

    Raises:
        ProblemError: if it is none, or has no image with brush or polygon labels.
    """
    try:
        root = parse_xml(config)
    except ValueError as error:
        raise invalid_field(field, f"expected a labeling interface in XML, got {error}") from error
    image = root.find(".//Image")
    name = "" if image is None else image.get("name", "")
    value = "" if image is None else image.get("value", "")
    brush, polygon = (_control(root, tag, name) for tag in ("BrushLabels", "PolygonLabels"))
    if not name or not value.startswith("$") or (brush is None and polygon is None):
        raise invalid_field(
            field, "expected an Image of a task's field, and BrushLabels or PolygonLabels for it"
        )
    return Labeling(name, value[1:], brush, polygon)


def _control(root: ElementTree.Element, tag: str, image: str) -> Control | None:
    for each in root.iter(tag):
        name = each.get("name", "")
        if name and image in each.get("toName", "").split(","):
            labels = (label.get("value", "") for label in each.iter("Label"))
            return Control(name, tuple(filter(None, labels)))
    return None


def image_labels(task: Mapping[str, Any], classes: ClassList, *, field: str) -> list[str]:
    """Return what a task says that its image shows: choices in its annotations, and a field of its data.

    Args:
        task: in JSON's types, from outside.
        classes: of the model; choices that name none of them are about something else.
        field: of the data: labels as people write them, or a list.
    """
    chosen = [label for label in _choices(task.get("annotations")) if _knows(classes, label)]
    data = task.get("data")
    told = data.get(field, ()) if isinstance(data, Mapping) else ()
    words = split_labels([told]) if isinstance(told, str) else told
    if not isinstance(words, list | tuple):
        return chosen
    return chosen + [each.strip() for each in words if isinstance(each, str) and each.strip()]


def _choices(annotations: Any) -> Iterator[str]:
    for annotation in annotations if isinstance(annotations, list) else ():
        results = annotation.get("result") if isinstance(annotation, Mapping) else None
        for result in results if isinstance(results, list) else ():
            value = result.get("value") if isinstance(result, Mapping) else None
            choices = value.get("choices") if isinstance(value, Mapping) else None
            for each in choices if isinstance(choices, list) else ():
                if isinstance(each, str):
                    yield each


def _knows(classes: ClassList, label: str) -> bool:
    try:
        classes.channel(label)
    except UnknownLabelError:
        return False
    return True


def regions(
    labeling: Labeling, label_map: NDArray[np.uint8], classes: ClassList, present: Sequence[int]
) -> list[dict[str, Any]]:
    """Return a label map's regions as Label Studio takes them, of the classes that the interface has labels for.

    Args:
        labeling: the interface; with both brush and polygons, brush regions are made.
        label_map: (H, W).
        classes: of the model.
        present: indices of the classes in the label map.
    """
    control = labeling.brush or labeling.polygon
    if control is None:
        raise ProblemError("invalid-request", "expected a tag for regions")
    tags = Tags(control.name, labeling.image)
    made: list[dict[str, Any]] = []
    for label in control.labels:
        if not _knows(classes, label):
            continue
        index = classes.classes[classes.channel(label)].index
        if index not in present:
            continue
        if labeling.brush is not None:
            made.append(brush_region(label_map, index, label, tags))
        else:
            made += polygon_regions(label_map, index, label, tags)
    return made


# Where a Label Studio task's image comes from: the task itself, or the one Label Studio that is configured.

_SECONDS: Final = 20.0
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True)
class TaskImages:
    """Fetches images.

    Tasks come from outside: no other address is asked than the one that the operator named, and no redirect followed,
    or a task could have this host fetch what only it can reach.

    Attributes:
        url: of the Label Studio; empty for none.
        token: of a user of it.
        max_bytes: largest image.
    """

    url: str
    token: str
    max_bytes: int

    async def fetch(self, source: object) -> bytes:
        """Return a task's image: a ``data:`` URL, or a URL or path on the configured Label Studio.

        Raises:
            ProblemError: if it is elsewhere, too large, or cannot be fetched.
        """
        if not isinstance(source, str) or not source:
            raise _refused("expected the image's URL in the task's data")
        if source.startswith("data:"):
            return _decode(source)
        return await self._download(self._address(source))

    def _address(self, source: str) -> str:
        if not self.url:
            raise _refused("expected a data: URL; SEMPLES_LABEL_STUDIO_URL names no Label Studio")
        try:
            address = urlsplit(urljoin(self.url.rstrip("/") + "/", source))
            same = _origin(address.geturl()) == _origin(self.url)
        except ValueError as error:
            raise _refused("expected the URL of an image") from error
        if not same or address.username is not None:
            raise _refused(f"expected an image on {self.url}")
        return address.geturl()

    async def _download(self, address: str) -> bytes:
        headers = {"Authorization": f"Token {self.token}"} if self.token else {}
        try:
            async with (
                asyncio.timeout(_SECONDS),
                # Without the environment's proxies: they would be asked in our stead.
                httpx.AsyncClient(trust_env=False, follow_redirects=False) as client,
                client.stream("GET", address, headers=headers) as answer,
            ):
                if answer.status_code != 200:
                    raise _refused(f"Label Studio answers {answer.status_code} for the image")
                return await self._read(answer)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise _refused("the image cannot be fetched from Label Studio") from error

    async def _read(self, answer: httpx.Response) -> bytes:
        content = bytearray()
        async for part in answer.aiter_bytes():
            content += part
            if len(content) > self.max_bytes:
                raise _refused(f"expected an image of at most {self.max_bytes} bytes")
        return bytes(content)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def _decode(source: str) -> bytes:
    head, _, content = source.partition(",")
    try:
        raw = unquote_to_bytes(content)
        return b64decode(raw, validate=True) if head.endswith(";base64") else raw
    except (binascii.Error, ValueError) as error:
        raise _refused("expected a data: URL of an image") from error


def _refused(message: str) -> ProblemError:
    return ProblemError("unreadable-image", message)


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
