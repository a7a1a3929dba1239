"""Post an image: the answer is its job or, with some patience, its mask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Form, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from rq.job import Job

from service.api.dependencies import (
    CallbackRulesDependency,
    CatalogDependency,
    DecodersDependency,
    JobsDependency,
    WaiterDependency,
)
from service.api.errors import ProblemDocument, ProblemError
from service.api.forms import (
    CallbackRules,
    Checked,
    ImageForm,
    PseudoMaskForm,
    SegmentForm,
    build_request,
    parse_wait,
    wants_png,
)
from service.api.jobs import describe, job_path
from service.api.schemas import JobDocument
from service.jobs.model_registry import Catalog
from service.jobs.service import Jobs
from service.jobs.watch import ResultWaiter
from service.middleware.auth import key_name
from worker.queue.jobs import TERMINAL, status_of

router = APIRouter(tags=["masks"])

MAX_WAIT = 60.0


@dataclass(frozen=True)
class Wishes:
    """How the client would like to be answered.

    Attributes:
        seconds: how long it waits for the result.
        png: whether it wants the mask itself.
        token: its Idempotency-Key.
    """

    seconds: float
    png: bool
    token: str | None


def wishes(
    wait: Annotated[
        float | None, Query(ge=0, le=MAX_WAIT, description="Seconds to wait for the result.")
    ] = None,
    prefer: Annotated[str | None, Header(description="wait=N: as ?wait=N.")] = None,
    accept: Annotated[str, Header(description="image/png: the mask, if waited for.")] = "*/*",
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> Wishes:
    """Read the query and the headers of a post."""
    seconds = parse_wait(wait, prefer, most=MAX_WAIT)
    return Wishes(seconds=seconds, png=wants_png(accept), token=idempotency_key)


def require_multipart(content_type: Annotated[str, Header()] = "") -> None:
    """Refuse a body of another kind, which would look like an empty form."""
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        got = content_type[:80] or "nothing"
        raise ProblemError("not-multipart", f"expected multipart/form-data, got {got}")


@dataclass(frozen=True)
class Desk:
    """Takes an image in and gives an answer out, whatever its task.

    Attributes:
        request: being answered.
        wish: how.
        jobs, catalog, waiter, decoders, rules: as in ``service.app``.
    """

    request: Request
    wish: Wishes
    jobs: Jobs
    catalog: Catalog
    waiter: ResultWaiter
    decoders: CapacityLimiter
    rules: CallbackRules

    async def answer(self, form: ImageForm) -> Response:
        """Check a form, queue its job or find the one there is, and wait for it if asked to."""
        wish, jobs = self.wish, self.jobs
        data = await form.image.read()
        checked = await run_sync(partial(self._check, form, data), limiter=self.decoders)
        root = self.request.scope.get("root_path", "")
        tell = await self.rules.recipient(form.callback_url, root=root)
        submit = partial(jobs.submit, checked.request, data, pixels=checked.pixels, tell=tell)
        job = await run_sync(partial(submit, token=self._token()))
        self.request.state.job = job.id
        if wish.seconds > 0 and status_of(job) not in TERMINAL:
            await self.waiter.wait(job.id, wish.seconds)
        return await run_sync(self._describe, job)

    def _describe(self, job: Job) -> Response:
        """Return a job's mask, if it is wanted and there is one, or its document."""
        wish, jobs = self.wish, self.jobs
        job = jobs.find(job.id) if wish.seconds > 0 else job
        done = wish.seconds > 0 and status_of(job) not in ("queued", "running")
        path = job_path(self.request, job.id)
        headers = {"Location": path, "Vary": "Accept, Prefer"}
        if done and wish.png:
            return Response(jobs.mask(job), 200, headers, "image/png")
        document = describe(job, jobs, path)
        content = document.model_dump(mode="json", exclude_none=True)
        return JSONResponse(content, 200 if done else 202, headers)

    def _token(self) -> str | None:
        """Return the client's Idempotency-Key, set apart from those of other clients."""
        owner, token = key_name(self.request.scope), self.wish.token
        return token if token is None or owner is None else f"{owner} {token}"

    def _check(self, form: ImageForm, data: bytes) -> Checked:
        model = self.catalog.choose(form.model or None, form.task)
        return build_request(form, data, model, max_pixels=self.jobs.limits.max_pixels)


async def desk(
    request: Request,
    wish: Annotated[Wishes, Depends(wishes)],
    jobs: JobsDependency,
    catalog: CatalogDependency,
    waiter: WaiterDependency,
    decoders: DecodersDependency,
    rules: CallbackRulesDependency,
) -> Desk:
    """Put together what a post needs."""
    return Desk(request, wish, jobs, catalog, waiter, decoders, rules)


DeskDependency = Annotated[Desk, Depends(desk)]

_PROBLEM: dict[str, Any] = {"model": ProblemDocument}
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
        **{code: _PROBLEM for code in (400, 401, 408, 409, 413, 415, 422, 429, 503)},
    },
}


@router.post("/pseudo-mask", **_POST)
async def post_pseudo_mask(
    form: Annotated[PseudoMaskForm, Form(media_type="multipart/form-data")], at: DeskDependency
) -> Response:
    """Make a mask of an image from the labels of what it shows.

    The same image, labels, options and model version give the same job, which runs once. With ``vocabulary=open``
    labels may be others than the model's classes: up to 64 bytes of letters, digits, spaces and a few marks each.
    """
    return await at.answer(form)


@router.post("/segment", **_POST)
async def post_segment(
    form: Annotated[SegmentForm, Form(media_type="multipart/form-data")], at: DeskDependency
) -> Response:
    """Make a mask of whatever an image shows, with a model that has a segmenter.

    Where no model is named: the default model if it has one, else another that does, else 409. The same image, options
    and model version give the same job, which runs once.
    """
    return await at.answer(form)
