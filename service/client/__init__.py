"""The Python client of the service (``pip install semples[client]``): httpx, httpx-sse, numpy and Pillow, no torch."""

from models.data.mask_folder import Outcome
from service.client.client import AsyncClient, Client
from service.client.errors import (
    BadImage,
    InvalidRequest,
    JobCanceled,
    JobFailed,
    NotFound,
    SemplesError,
    Unauthorized,
    Unavailable,
    UnknownLabel,
)
from service.client.types import AsyncResult, Batch, Job, Mask, Model, Result

__all__ = [
    "AsyncClient",
    "AsyncResult",
    "BadImage",
    "Batch",
    "Client",
    "InvalidRequest",
    "Job",
    "JobCanceled",
    "JobFailed",
    "Mask",
    "Model",
    "NotFound",
    "Outcome",
    "Result",
    "SemplesError",
    "Unauthorized",
    "Unavailable",
    "UnknownLabel",
]
