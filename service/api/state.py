"""The state of the API, made once in ``create_app``, and the dependency that gives it to routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from anyio import CapacityLimiter
from fastapi import Depends, Request
from prometheus_client import CollectorRegistry

from service.api.forms import CallbackRules
from service.batches.service import BatchService
from service.jobs.model_registry import ModelRegistry
from service.jobs.service import JobService
from service.jobs.watch import EventStream
from service.label_studio import LabelStudioBackend
from service.store_probe import StoreProbe


@dataclass(frozen=True)
class AppState:
    """What routes work with."""

    jobs: JobService
    batches: BatchService
    models: ModelRegistry
    events: EventStream
    callbacks: CallbackRules
    label_studio: LabelStudioBackend
    store_probe: StoreProbe
    metrics: CollectorRegistry
    decoders: CapacityLimiter  # images decoded or drawn at once
    unpackers: CapacityLimiter  # zips read at once
    packers: CapacityLimiter  # archives made at once


async def _state(request: Request) -> AppState:
    return cast("AppState", request.app.state.api)


State = Annotated[AppState, Depends(_state)]
