"""The Python client of the service: httpx, numpy and Pillow are all that it needs (``pip install semples[client]``)."""

from service.client.asynchronous import AsyncClient
from service.client.blocking import Client
from service.client.documents import Batch, Job, Model
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
from service.client.folder import Outcome
from service.client.results import AsyncResult, Mask, Result

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
