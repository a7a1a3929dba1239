"""Routes that take an image: the response is its job or, after a wait, its mask."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import JSONResponse
from rq.job import Job

from service.api.errors import problem_responses
from service.api.forms import (
    CheckedRequest,
    ImageForm,
    PseudoMaskForm,
    ResponsePreferences,
    SegmentForm,
    build_request,
    require_multipart,
    response_preferences,
)
from service.api.jobs import describe_job, job_path
from service.api.schemas import JobDocument
from service.api.state import State
from worker.queue.jobs import FINISHED_STATUSES, status_of

router = APIRouter(tags=["masks"])


class _MaskRequestHandler:
    """Answers a post of an image, whatever its task; a dependency of the routes."""

    def __init__(
        self,
        request: Request,
        state: State,
        preferences: Annotated[ResponsePreferences, Depends(response_preferences)],
    ) -> None:
        self._request = request
        self._state = state
        self._preferences = preferences

    async def answer(self, form: ImageForm) -> Response:
        """Check a form, submit its job, and wait for its end if the client prefers that."""
        state, wait = self._state, self._preferences.wait
        data = await form.image.read()
        checked = await run_sync(partial(self._check, form, data), limiter=state.decoders)
        root = self._request.scope.get("root_path", "")
        callback = await state.callbacks.check(form.callback_url, root=root)
        submit = partial(state.jobs.submit, pixels=checked.pixels, callback=callback)
        job = await run_sync(submit, checked.request, data)
        self._request.state.job = job.id
        if wait > 0 and status_of(job) not in FINISHED_STATUSES:
            await state.events.wait_for_job(job.id, wait)
        return await run_sync(self._describe, job)

    def _check(self, form: ImageForm, data: bytes) -> CheckedRequest:
        model = self._state.models.choose(form.model or None, form.task)
        return build_request(form, data, model, max_pixels=self._state.jobs.limits.max_pixels)

    def _describe(self, job: Job) -> Response:
        jobs, waited = self._state.jobs, self._preferences.wait > 0
        job = jobs.find(job.id) if waited else job
        done = waited and status_of(job) in FINISHED_STATUSES
        headers = {"Location": job_path(self._request, job.id), "Vary": "Accept, Prefer"}
        if done and self._preferences.png:
            mask = jobs.results(jobs.finished(job.id)).mask()
            return Response(mask, 200, headers, "image/png")
        document = describe_job(self._request, job, jobs)
        content = document.model_dump(mode="json", exclude_none=True)
        return JSONResponse(content, 200 if done else 202, headers)


_Handler = Annotated[_MaskRequestHandler, Depends()]
_POST: dict[str, Any] = {
    "status_code": 202,
    "response_model": JobDocument,
    "dependencies": [Depends(require_multipart)],
    "responses": {
        200: {
            "model": JobDocument,
            "description": "Done within the wait; with Accept: image/png, the mask itself.",
            "content": {"image/png": {}},
        },
        **problem_responses(400, 401, 408, 409, 413, 415, 422, 429, 503),
    },
}


@router.post("/pseudo-mask", **_POST)
async def post_pseudo_mask(
    form: Annotated[PseudoMaskForm, Form(media_type="multipart/form-data")], handler: _Handler
) -> Response:
    """Make a mask of an image from the labels of what it shows.

    The same image, labels, options and model version give the same job, which runs once. With ``vocabulary=open``
    labels may be others than the model's classes: up to 64 bytes of letters, digits, spaces and a few marks each.
    """
    return await handler.answer(form)


@router.post("/segment", **_POST)
async def post_segment(
    form: Annotated[SegmentForm, Form(media_type="multipart/form-data")], handler: _Handler
) -> Response:
    """Make a mask of whatever an image shows, with a model that has a segmenter.

    Where no model is named: the default model if it has one, else another that does, else 409. The same image, options
    and model version give the same job, which runs once.
    """
    return await handler.answer(form)
