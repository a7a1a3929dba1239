"""Routes of a finished job's files: its mask, pictures, annotations for other tools, scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Final

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Path, Query, Response

from models.data.classes import ClassInfo
from models.data.mask_files import software_version
from models.data.mask_folder import MaskedImage
from models.exports import with_ignored
from models.exports.coco import coco_document
from models.exports.cvat import cvat_xml
from models.exports.label_studio import label_studio_task
from service.api.errors import problem_responses
from service.api.forms import NamedOverrides, ThresholdOverrides
from service.api.jobs import JobId
from service.api.state import State
from service.jobs.results import FinishedJob, JobResults
from worker.queue.schema import RESULT_SECONDS

router = APIRouter(tags=["results"])

_CACHE_CONTROL: Final = f"private, max-age={RESULT_SECONDS}, immutable"
_PNG, _JSON = "image/png", "application/json"
_XML, _NPZ = "application/xml", "application/octet-stream"
_BYTES: Final = {"type": "string", "format": "binary"}
_TASKS: Final = {"type": "array", "items": {"type": "object", "required": ["data", "predictions"]}}
_COCO: Final = {
    "type": "object",
    "required": ["info", "categories", "images", "annotations"],
    "examples": [
        {
            "info": {"description": "pseudo masks by semples 0.1.0"},
            "licenses": [],
            "categories": [{"id": 1, "name": "cat", "supercategory": ""}],
            "images": [{"id": 1, "file_name": "photo.jpg", "width": 640, "height": 480}],
            "annotations": [
                {
                    "id": 1,
                    "image_id": 1,
                    "category_id": 1,
                    "segmentation": [[120, 80, 320, 80, 320, 300, 120, 300]],
                    "area": 44000,
                    "bbox": [120, 80, 200, 220],
                    "iscrowd": 0,
                    "score": 0.83,
                }
            ],
        }
    ],
}

_Overrides = Annotated[ThresholdOverrides, Query()]
_Named = Annotated[NamedOverrides, Query()]
_Names = Mapping[int, str]


class _FileResponder:
    """Answers with a finished job's files, or with 304 if the client has them; a dependency of the routes."""

    def __init__(
        self,
        job_id: JobId,
        state: State,
        if_none_match: Annotated[str | None, Header(description="An ETag: 304 if it still holds.")] = None,
    ) -> None:
        self.job_id = job_id
        self._state = state
        known = (if_none_match or "").split(",")
        self._known = [each.strip().removeprefix("W/") for each in known]

    async def answer(
        self,
        overrides: ThresholdOverrides,
        make: Callable[[FinishedJob, JobResults], bytes],
        *,
        name: str,
        media_type: str = _PNG,
    ) -> Response:
        """Make a file, unless the client has it; ``make`` blocks, ``name`` is the file's within the job."""
        job = await run_sync(self._state.jobs.finished, self.job_id)
        options = overrides.apply(job.request)
        tag = self._entity_tag(job, asdict(options), name, overrides)
        headers = {"ETag": tag, "Cache-Control": _CACHE_CONTROL}
        if tag in self._known or self._known == ["*"]:
            return Response(status_code=304, headers=headers)
        results = self._state.jobs.results(job, options)
        content = await run_sync(partial(make, job, results), limiter=self._state.decoders)
        return Response(content, headers=headers, media_type=media_type)

    async def annotations(
        self,
        choices: NamedOverrides,
        write: Callable[[MaskedImage, _Names], bytes],
        *,
        name: str,
        media_type: str = _JSON,
    ) -> Response:
        """Answer with a mask as ``write`` writes it for an annotation tool, from the names of the job's classes."""

        def make(job: FinishedJob, results: JobResults) -> bytes:
            names = {each.index: each.name for each in job.result.classes}
            return write(results.masked_image(choices.image or self.job_id), names)

        return await self.answer(choices, make, name=name, media_type=media_type)

    def _entity_tag(self, job: FinishedJob, options: dict[str, Any], name: str, overrides: ThresholdOverrides) -> str:
        """Hash what decides a file's content; blobs are named by theirs, so nothing is read or drawn for it."""
        stored = [job.request.image, job.result.blobs.model_dump(), options]
        image = overrides.model_dump(include={"image"})
        content = json.dumps((self.job_id, name, software_version(), stored, image), sort_keys=True)
        return f'"{hashlib.sha256(content.encode()).hexdigest()[:32]}"'


_Files = Annotated[_FileResponder, Depends()]


def _file(media_type: str, schema: dict[str, Any] = _BYTES) -> dict[str, Any]:
    """Return the arguments of a file's route."""
    content = {media_type: {"schema": schema}}
    return {
        "response_class": Response,
        "responses": {
            200: {"content": content, "description": "The file."},
            304: {"description": "The client has it already."},
            **problem_responses(404, 409, 422, 503),
        },
    }


@router.get("/jobs/{job_id}/mask.png", **_file(_PNG))
async def get_mask(overrides: _Overrides, files: _Files) -> Response:
    """Return the label map: a palette PNG in VOC colors, 0 background, 255 ignore.

    With thresholds: re-decided from the stored scores, without the model; the same bytes as of a job with these
    options.
    """
    return await files.answer(overrides, lambda _, results: results.mask(), name="mask")


@router.get("/jobs/{job_id}/overlay.png", **_file(_PNG))
async def get_overlay(overrides: _Overrides, files: _Files) -> Response:
    """Return the image with the mask's colors laid over it."""
    return await files.answer(overrides, lambda _, results: results.overlay(), name="overlay")


@router.get("/jobs/{job_id}/confidence.png", **_file(_PNG))
async def get_confidence(overrides: _Overrides, files: _Files) -> Response:
    """Return each pixel's confidence: a palette PNG, bright is sure; index 255 is certainty, 0 none."""
    return await files.answer(overrides, lambda _, results: results.confidence(), name="confidence")


@router.get("/jobs/{job_id}/cam/{label}.png", **_file(_PNG))
async def get_cam(
    label: Annotated[str, Path(description="A class of the job, by name or by index.")],
    files: _Files,
) -> Response:
    """Return a class's soft map at the image's size: a palette PNG, bright is high; index 255 is 1.

    The activation map before refinement and before any threshold; where there is none, as of `/segment`, the scores.
    """
    return await files.answer(
        ThresholdOverrides(),
        lambda job, results: results.cam(job.find_class(label)),
        name=f"cam {label}",
    )


@router.get("/jobs/{job_id}/coco.json", **_file(_JSON, _COCO))
async def get_coco(choices: _Named, files: _Files) -> Response:
    """Return COCO annotations with run lengths: one a class; ignored pixels are the image's `ignored`."""
    return await files.annotations(choices, partial(_coco, polygons=False), name="coco.json")


@router.get("/jobs/{job_id}/polygons.json", **_file(_JSON, _COCO))
async def get_polygons(choices: _Named, files: _Files) -> Response:
    """Return COCO annotations with polygons, which pycocotools turns into exactly the mask's pixels."""
    return await files.annotations(choices, partial(_coco, polygons=True), name="polygons.json")


@router.get("/jobs/{job_id}/label-studio.json", **_file(_JSON, _TASKS))
async def get_label_studio(choices: _Named, files: _Files) -> Response:
    """Return a Label Studio task whose prediction is the mask, as brush regions; `image` is the image's URL."""

    def write(photo: MaskedImage, names: _Names) -> bytes:
        return _json([label_studio_task(photo, with_ignored(names), url=photo.name)])

    return await files.annotations(choices, write, name="label-studio.json")


@router.get("/jobs/{job_id}/cvat.xml", **_file(_XML))
async def get_cvat(choices: _Named, files: _Files) -> Response:
    """Return annotations for CVAT, its format "CVAT 1.1", as masks; `image` is the image's name in the task."""

    def write(photo: MaskedImage, names: _Names) -> bytes:
        return cvat_xml(photo, with_ignored(names))

    return await files.annotations(choices, write, name="cvat.xml", media_type=_XML)


@router.get("/jobs/{job_id}/scores.npz", **_file(_NPZ))
async def get_scores(files: _Files) -> Response:
    """Return the soft maps: scores, class_index, class_name, image_size; cams of a pseudo mask."""
    return await files.answer(ThresholdOverrides(), lambda _, results: results.scores(), name="scores", media_type=_NPZ)


def _coco(photo: MaskedImage, names: _Names, *, polygons: bool) -> bytes:
    classes = [ClassInfo(index, name) for index, name in names.items()]
    return _json(coco_document(photo, classes, polygons=polygons))


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()
