"""Label Studio's ML backend: tasks in, predictions out, by jobs like any other.

A project's labeling interface names the field of a task that holds the image, and the labels of regions. A task's image
is a ``data:`` URL, or is fetched from the one Label Studio that is configured.
"""

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

import httpx
import numpy as np
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import UploadFile
from numpy.typing import NDArray
from redis import Redis
from rq.job import Job

from models.data.classes import ClassList, UnknownLabelError, split_labels
from models.data.images import ImageError
from models.data.voc import parse_xml
from models.exports.label_studio import Tags, brush_region, polygon_regions
from service.api.errors import ProblemError, invalid_field, to_problem
from service.api.forms import CheckedRequest, ImageForm, PseudoMaskForm, SegmentForm, build_request
from service.jobs.model_registry import ModelRegistry
from service.jobs.service import JobService
from service.jobs.watch import EventStream
from worker.queue.registry import ModelInfo

_Prediction = dict[str, Any]

_LABELS_FIELD: Final = "labels"
_WAIT_SECONDS: Final = 60.0
_FETCH_SECONDS: Final = 20.0
_PROJECT_SECONDS: Final = 90 * 24 * 3600
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True)
class LabelStudioBackend:
    """Checks projects, whose settings are kept in Redis, and predicts their tasks."""

    redis: Redis
    jobs: JobService
    models: ModelRegistry
    events: EventStream
    decoders: CapacityLimiter
    images: TaskImages

    def set_up(self, project: str, config: str, extra_params: Any) -> str:
        """Check a project's interface, keep which field of its tasks holds labels, and return the model's version."""
        _parse_interface(config, field="schema")
        model = self.models.choose(None, "pseudo_mask")
        self.redis.set(_project_key(project), _labels_field(extra_params), ex=_PROJECT_SECONDS)
        return _version(model)

    async def predict(
        self, tasks: Sequence[Mapping[str, Any]], *, project: str, config: str, interactive: bool = False
    ) -> list[_Prediction]:
        """Return a prediction for each task; where that is not possible, an ``error``.

        A task that takes longer than a minute has one as well; asked again, its prediction is there. Beside an error
        there is no ``result``, not even an empty one, which Label Studio would store, and then never ask again; but it
        is there for a person who waits (``interactive``), for whom nothing is stored. Raises ProblemError if the
        interface is invalid, there is no model, or the queue is full.
        """
        interface = _parse_interface(config, field="label_config")
        key = _project_key(project)
        stored = await run_sync(partial(self.redis.getex, key, ex=_PROJECT_SECONDS))
        field = cast("bytes", stored or _LABELS_FIELD.encode()).decode()
        submitted = [await self._submit(task, interface, field) for task in tasks]
        deadline = time.monotonic() + _WAIT_SECONDS
        found = [
            each if isinstance(each, dict) else await self._prediction(*each, interface, deadline) for each in submitted
        ]
        return [{"result": [], **each} if interactive else each for each in found]

    async def _submit(
        self, task: Mapping[str, Any], interface: _Interface, field: str
    ) -> tuple[Job, ModelInfo] | _Prediction:
        try:
            data = task.get("data")
            source = data.get(interface.field) if isinstance(data, Mapping) else None
            content = await self.images.fetch(source)
            check = partial(self._check, task, content, field)
            checked, model = await run_sync(check, limiter=self.decoders)
        except (ProblemError, ImageError, UnknownLabelError) as error:
            problem = to_problem(error)
            if problem.kind.status >= 500:
                raise
            return {"error": problem.detail}
        submit = partial(self.jobs.submit, checked.request, content, pixels=checked.pixels)
        return await run_sync(submit), model

    def _check(self, task: Mapping[str, Any], content: bytes, field: str) -> tuple[CheckedRequest, ModelInfo]:
        model = self.models.choose(None, "pseudo_mask")
        labels = _image_labels(task, model.class_list(), field=field)
        image = UploadFile(io.BytesIO(content))
        form: ImageForm
        if labels:
            form = PseudoMaskForm(image=image, labels=labels)
        else:
            model, form = self.models.choose(None, "segment"), SegmentForm(image=image)
        limit = self.jobs.limits.max_pixels
        return build_request(form, content, model, max_pixels=limit), model

    async def _prediction(self, job: Job, model: ModelInfo, interface: _Interface, deadline: float) -> _Prediction:
        await self.events.wait_for_job(job.id, deadline - time.monotonic())
        version = {"model_version": _version(model)}
        try:
            make = partial(self._describe, job.id, model, interface)
            return version | await run_sync(make, limiter=self.decoders)
        except ProblemError as problem:  # not done yet, or failed
            return version | {"error": problem.detail}

    def _describe(self, job_id: str, model: ModelInfo, interface: _Interface) -> _Prediction:
        job = self.jobs.finished(job_id)
        label_map = self.jobs.results(job).label_map
        found = {c.index: c.confidence for c in job.result.classes if c.confidence is not None}
        regions = _regions(interface, label_map, model.class_list(), list(found))
        return {"result": regions} | ({"score": min(found.values())} if found else {})


@dataclass(frozen=True)
class TaskImages:
    """Fetches tasks' images.

    Tasks come from outside: only the operator's Label Studio is asked, and no redirect is followed, or a task could
    have this host fetch what only it can reach.
    """

    url: str  # of the Label Studio; empty for none
    token: str  # of a user there: a personal access token, or a legacy one
    max_bytes: int

    async def fetch(self, source: object) -> bytes:
        """Return a task's image; ProblemError if it is elsewhere, too large, or cannot be fetched."""
        if not isinstance(source, str) or not source:
            raise _unreadable("expected the image's URL in the task's data")
        if source.startswith("data:"):
            return _decode_data_url(source)
        return await self._download(self._address(source))

    def _address(self, source: str) -> str:
        if not self.url:
            raise _unreadable("expected a data: URL; SEMPLES_LABEL_STUDIO_URL names no Label Studio")
        try:
            address = urlsplit(urljoin(self.url.rstrip("/") + "/", source))
            same = _origin(address.geturl()) == _origin(self.url)
        except ValueError as error:
            raise _unreadable("expected the URL of an image") from error
        if not same or address.username is not None:
            raise _unreadable(f"expected an image on {self.url}")
        return address.geturl()

    async def _download(self, address: str) -> bytes:
        try:
            async with (
                asyncio.timeout(_FETCH_SECONDS),
                # Without the environment's proxies: they would make the request in our place.
                httpx.AsyncClient(trust_env=False, follow_redirects=False) as client,
                client.stream("GET", address, headers=await self._authorization(client)) as response,
            ):
                if response.status_code != 200:
                    raise _unreadable(f"Label Studio answers {response.status_code} for the image")
                return await self._read(response)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise _unreadable("the image cannot be fetched from Label Studio") from error

    async def _authorization(self, client: httpx.AsyncClient) -> dict[str, str]:
        """Return the header for the token; a personal access token is exchanged for one of a few minutes first."""
        if not self.token:
            return {}
        if self.token.count(".") != 2:  # no JSON web token
            return {"Authorization": f"Token {self.token}"}
        answer = await client.post(f"{self.url.rstrip('/')}/api/token/refresh/", json={"refresh": self.token})
        if answer.status_code != 200:
            raise _unreadable(f"Label Studio answers {answer.status_code} for SEMPLES_LABEL_STUDIO_TOKEN")
        try:
            return {"Authorization": f"Bearer {answer.json()['access']}"}
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable("Label Studio gives no access for SEMPLES_LABEL_STUDIO_TOKEN") from error

    async def _read(self, response: httpx.Response) -> bytes:
        content = bytearray()
        async for part in response.aiter_bytes():
            content += part
            if len(content) > self.max_bytes:
                raise _unreadable(f"expected an image of at most {self.max_bytes} bytes")
        return bytes(content)


@dataclass(frozen=True)
class _Interface:
    """The field of a task's data that holds the image, and the tag for regions with its labels."""

    field: str
    tags: Tags
    labels: tuple[str, ...]
    brush: bool  # else polygons


def _parse_interface(config: str, *, field: str) -> _Interface:
    """Read a labeling interface, which is XML; ``field`` of the request is named in errors."""
    try:
        root = parse_xml(config)
    except ValueError as error:
        raise invalid_field(field, f"expected a labeling interface in XML, got {error}") from error
    image = root.find(".//Image")
    name = "" if image is None else image.get("name", "")
    value = "" if image is None else image.get("value", "")
    for control in (*root.iter("BrushLabels"), *root.iter("PolygonLabels")):
        of_image = name and name in control.get("toName", "").split(",")
        if value.startswith("$") and of_image and control.get("name"):
            tags = Tags(control.get("name", ""), name)
            labels = (label.get("value", "") for label in control.iter("Label"))
            brush = control.tag == "BrushLabels"
            return _Interface(value[1:], tags, tuple(filter(None, labels)), brush)
    expected = "expected an Image of a task's field, and BrushLabels or PolygonLabels for it"
    raise invalid_field(field, expected)


def _image_labels(task: Mapping[str, Any], classes: ClassList, *, field: str) -> list[str]:
    """Return a task's image-level labels: choices that name a class, and a field of its data, as text or a list."""
    chosen = [label for label in _choices(task.get("annotations")) if classes.knows(label)]
    data = task.get("data")
    labels = data.get(field, ()) if isinstance(data, Mapping) else ()
    words = split_labels([labels]) if isinstance(labels, str) else labels
    if not isinstance(words, list | tuple):
        return chosen
    return chosen + [each.strip() for each in words if isinstance(each, str) and each.strip()]


def _choices(annotations: Any) -> Iterator[str]:
    for annotation in _list(annotations):
        for result in _list(_member(annotation, "result")):
            for each in _list(_member(_member(result, "value"), "choices")):
                if isinstance(each, str):
                    yield each


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _regions(
    interface: _Interface, label_map: NDArray[np.uint8], classes: ClassList, present: Sequence[int]
) -> list[dict[str, Any]]:
    """Return a label map's regions, of the present classes that the interface has labels for."""
    regions: list[dict[str, Any]] = []
    for label in filter(classes.knows, interface.labels):
        index = classes.classes[classes.channel(label)].index
        if index not in present:
            continue
        if interface.brush:
            regions.append(brush_region(label_map, index, label, interface.tags))
        else:
            regions += polygon_regions(label_map, index, label, interface.tags)
    return regions


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def _decode_data_url(source: str) -> bytes:
    head, _, content = source.partition(",")
    try:
        raw = unquote_to_bytes(content)
        return b64decode(raw, validate=True) if head.endswith(";base64") else raw
    except (binascii.Error, ValueError) as error:
        raise _unreadable("expected a data: URL of an image") from error


def _unreadable(message: str) -> ProblemError:
    return ProblemError("unreadable-image", message)


def _version(model: ModelInfo) -> str:
    return f"{model.name} {model.version}"


def _labels_field(extra_params: Any) -> str:
    """Return the field of tasks' data that holds labels, as a setup's extra parameters name it: ``labels_field``."""
    if isinstance(extra_params, str):
        try:
            extra_params = json.loads(extra_params)
        except (ValueError, RecursionError):
            return _LABELS_FIELD
    field = _member(extra_params, "labels_field")
    return field if isinstance(field, str) and 0 < len(field) <= 200 else _LABELS_FIELD


def _project_key(project: str) -> str:
    return f"semples:label-studio:{hashlib.sha256(project.encode()).hexdigest()[:32]}"
