"""A finished job's files: its mask, pictures to look at, annotations for tools."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final, Literal

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Path, Response

from models.data.classes import ClassInfo
from models.data.mask_files import software_version
from models.data.mask_folder import MaskedPhoto
from models.exports.coco import coco_document
from models.exports.cvat import cvat_xml, with_ignored
from models.exports.label_studio import label_studio_task
from service.api.dependencies import DecodersDependency, JobsDependency
from service.api.errors import ProblemDocument
from service.api.jobs import JobId
from service.api.schemas import Choices, ChoicesQuery, NamedChoices, NamedChoicesQuery
from service.jobs.results import Finished, Results, find_class
from service.jobs.service import Jobs
from worker.queue.schema import RESULT_SECONDS

# Answers that clients may keep: tags of what decides their content, and 304 where that is known already.

CACHE_CONTROL = f"private, max-age={RESULT_SECONDS}, immutable"


def entity_tag(*decides: Any) -> str:
    """Return the ETag of an answer from everything that decides its content, in JSON's types.

    Blobs are decided by their keys, which are hashes, so nothing needs to be read or drawn to know the tag.
    """
    content = json.dumps(decides, sort_keys=True).encode()
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def is_known(tag: str, if_none_match: str | None) -> bool:
    """Return whether an If-None-Match header names a tag, weakly or not, or any."""
    named = [each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")]
    return tag in named or named == ["*"]


def headers(tag: str) -> dict[str, str]:
    """Return the headers of an answer with a tag."""
    return {"ETag": tag, "Cache-Control": CACHE_CONTROL}


# A finished job's mask in the formats of annotation tools; the library's exporters write them.

Format = Literal["coco.json", "polygons.json", "label-studio.json", "cvat.xml"]
Names = Mapping[int, str]


def annotated(form: Format, photo: MaskedPhoto, names: Names) -> bytes:
    """Return a mask in a tool's format.

    Args:
        form: which.
        photo: the mask.
        names: of the job's classes, by index; which may be none.
    """
    return _WRITERS[form](photo, names)


def _coco(photo: MaskedPhoto, names: Names) -> bytes:
    return _json(coco_document(photo, _classes(names), polygons=False))


def _polygons(photo: MaskedPhoto, names: Names) -> bytes:
    return _json(coco_document(photo, _classes(names), polygons=True))


def _label_studio(photo: MaskedPhoto, names: Names) -> bytes:
    return _json([label_studio_task(photo, with_ignored(names), image=photo.name)])


def _cvat(photo: MaskedPhoto, names: Names) -> bytes:
    return cvat_xml(photo, with_ignored(names))


def _classes(names: Names) -> list[ClassInfo]:
    return [ClassInfo(index, name) for index, name in names.items()]


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


_WRITERS: Final[Mapping[Format, Callable[[MaskedPhoto, Names], bytes]]] = {
    "coco.json": _coco,
    "polygons.json": _polygons,
    "label-studio.json": _label_studio,
    "cvat.xml": _cvat,
}


router = APIRouter(tags=["results"])

PNG, JSON = "image/png", "application/json"
COCO = {
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
TASKS = {"type": "array", "items": {"type": "object", "required": ["data", "predictions"]}}


@dataclass(frozen=True)
class Shelf:
    """Hands out a finished job's files.

    Attributes:
        job_id, known: of the request: the job, and the tags of what the client has.
        jobs, decoders: as in ``service.app``.
    """

    job_id: str
    known: str | None
    jobs: Jobs
    decoders: CapacityLimiter

    async def answer(
        self,
        choices: Choices,
        make: Callable[[Finished, Results], bytes],
        *,
        name: str,
        media_type: str,
    ) -> Response:
        """Make a file, or say that the client has it already.

        Args:
            choices: how to decide anew.
            make: makes it; blocks.
            name: that tells files of a job apart.
            media_type: of the file.
        """
        job = await run_sync(self.jobs.finished, self.job_id)
        options = choices.applied_to(job.request)
        stored = [job.request.image, job.result.blobs.model_dump(), options.model_dump()]
        chosen = choices.model_dump(include={"image"})
        tag = entity_tag(self.job_id, name, software_version(), stored, chosen)
        if is_known(tag, self.known):
            return Response(status_code=304, headers=headers(tag))
        made = partial(make, job, self.jobs.results(job, options))
        content = await run_sync(made, limiter=self.decoders)
        return Response(content, headers=headers(tag), media_type=media_type)


async def _shelf(
    job_id: JobId,
    jobs: JobsDependency,
    decoders: DecodersDependency,
    if_none_match: Annotated[
        str | None, Header(description="An ETag: 304 if it still holds.")
    ] = None,
) -> Shelf:
    return Shelf(job_id, if_none_match, jobs, decoders)


ShelfDependency = Annotated[Shelf, Depends(_shelf)]


_BYTES = {"type": "string", "format": "binary"}


def _file(media_type: str, schema: dict[str, Any] = _BYTES) -> dict[str, Any]:
    """Return what all files have in common: a route's arguments."""
    problem: dict[str, Any] = {"model": ProblemDocument}
    content = {media_type: {"schema": schema}}
    return {
        "response_class": Response,
        "responses": {
            200: {"content": content, "description": "The file."},
            304: {"description": "The client has it already."},
            **{code: problem for code in (404, 409, 422, 503)},
        },
    }


@router.get("/jobs/{job_id}/mask.png", **_file(PNG))
async def get_mask(choices: ChoicesQuery, shelf: ShelfDependency) -> Response:
    """Return the label map: a palette PNG in VOC colors, 0 background, 255 ignore.

    With choices: decided anew from the stored scores, without the model; the same bytes as of a job with these options.
    """
    return await shelf.answer(choices, lambda _, it: it.mask(), name="mask", media_type=PNG)


@router.get("/jobs/{job_id}/overlay.png", **_file(PNG))
async def get_overlay(choices: ChoicesQuery, shelf: ShelfDependency) -> Response:
    """Return the image with the mask's colors laid over it."""
    return await shelf.answer(choices, lambda _, it: it.overlay(), name="overlay", media_type=PNG)


@router.get("/jobs/{job_id}/confidence.png", **_file(PNG))
async def get_confidence(choices: ChoicesQuery, shelf: ShelfDependency) -> Response:
    """Return how sure each pixel is: a palette PNG, bright is sure; index 255 is certainty, 0 none."""
    return await shelf.answer(
        choices, lambda _, it: it.confidence(), name="confidence", media_type=PNG
    )


@router.get("/jobs/{job_id}/cam/{label}.png", **_file(PNG))
async def get_cam(
    label: Annotated[str, Path(description="A class of the job, by name or by index.")],
    shelf: ShelfDependency,
) -> Response:
    """Return a class's soft map at the image's size: a palette PNG, bright is high; index 255 is 1.

    The activation map before refinement and before any threshold; where there is none, as of `/segment`, the scores.
    """
    return await shelf.answer(
        Choices(),
        lambda job, it: it.cam(find_class(job, label)),
        name=f"cam {label}",
        media_type=PNG,
    )


async def _annotations(shelf: Shelf, choices: NamedChoices, form: Format, media: str) -> Response:
    def make(job: Finished, results: Results) -> bytes:
        names = {each.index: each.name for each in job.result.classes}
        return annotated(form, results.masked_photo(choices.image or shelf.job_id), names)

    return await shelf.answer(choices, make, name=form, media_type=media)


@router.get("/jobs/{job_id}/coco.json", **_file(JSON, COCO))
async def get_coco(choices: NamedChoicesQuery, shelf: ShelfDependency) -> Response:
    """Return COCO annotations with run lengths: one a class; ignored pixels are the image's `ignored`."""
    return await _annotations(shelf, choices, "coco.json", JSON)


@router.get("/jobs/{job_id}/polygons.json", **_file(JSON, COCO))
async def get_polygons(choices: NamedChoicesQuery, shelf: ShelfDependency) -> Response:
    """Return COCO annotations with polygons, which pycocotools turns into exactly the mask's pixels."""
    return await _annotations(shelf, choices, "polygons.json", JSON)


@router.get("/jobs/{job_id}/label-studio.json", **_file(JSON, TASKS))
async def get_label_studio(choices: NamedChoicesQuery, shelf: ShelfDependency) -> Response:
    """Return a Label Studio task whose prediction is the mask, as brush regions; `image` is the image's URL."""
    return await _annotations(shelf, choices, "label-studio.json", JSON)


@router.get("/jobs/{job_id}/cvat.xml", **_file("application/xml"))
async def get_cvat(choices: NamedChoicesQuery, shelf: ShelfDependency) -> Response:
    """Return annotations for CVAT, its format "CVAT 1.1", as masks; `image` is the image's name in the task."""
    return await _annotations(shelf, choices, "cvat.xml", "application/xml")


@router.get("/jobs/{job_id}/scores.npz", **_file("application/octet-stream"))
async def get_scores(shelf: ShelfDependency) -> Response:
    """Return the soft maps: scores, class_index, class_name, image_size; cams of a pseudo mask."""
    return await shelf.answer(
        Choices(),
        lambda _, it: it.scores(),
        name="scores",
        media_type="application/octet-stream",
    )
