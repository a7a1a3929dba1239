"""What routes are given: made once in ``create_app``, found again through the request."""

from __future__ import annotations

from typing import Annotated, cast

from anyio import CapacityLimiter
from fastapi import Depends, Request

from service.api.forms import CallbackRules
from service.batches.service import Batches
from service.jobs.model_registry import Catalog
from service.jobs.service import Jobs
from service.jobs.watch import Listeners, ResultWaiter
from service.store_probe import StoreProbe


async def _jobs(request: Request) -> Jobs:
    return cast("Jobs", request.app.state.jobs)


async def _batches(request: Request) -> Batches:
    return cast("Batches", request.app.state.batches)


async def _unpackers(request: Request) -> CapacityLimiter:
    return cast("CapacityLimiter", request.app.state.unpackers)


async def _packers(request: Request) -> CapacityLimiter:
    return cast("CapacityLimiter", request.app.state.packers)


async def _catalog(request: Request) -> Catalog:
    return cast("Catalog", request.app.state.catalog)


async def _waiter(request: Request) -> ResultWaiter:
    return cast("ResultWaiter", request.app.state.waiter)


async def _decoders(request: Request) -> CapacityLimiter:
    return cast("CapacityLimiter", request.app.state.decoders)


async def _callback_rules(request: Request) -> CallbackRules:
    return cast("CallbackRules", request.app.state.callback_rules)


async def _listeners(request: Request) -> Listeners:
    return cast("Listeners", request.app.state.listeners)


async def _store_probe(request: Request) -> StoreProbe:
    return cast("StoreProbe", request.app.state.store_probe)


JobsDependency = Annotated[Jobs, Depends(_jobs)]
BatchesDependency = Annotated[Batches, Depends(_batches)]
UnpackersDependency = Annotated[CapacityLimiter, Depends(_unpackers)]
PackersDependency = Annotated[CapacityLimiter, Depends(_packers)]
CatalogDependency = Annotated[Catalog, Depends(_catalog)]
WaiterDependency = Annotated[ResultWaiter, Depends(_waiter)]
DecodersDependency = Annotated[CapacityLimiter, Depends(_decoders)]
CallbackRulesDependency = Annotated[CallbackRules, Depends(_callback_rules)]
ListenersDependency = Annotated[Listeners, Depends(_listeners)]
StoreProbeDependency = Annotated[StoreProbe, Depends(_store_probe)]
