"""The API's settings, from environment variables."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Where the queue and the blobs are, and how much the API takes.

    Attributes:
        redis_url: redis://, rediss:// or unix://; from ``REDIS_URL``.
        blobs: directory or fsspec URL of the blob store, shared with the workers.
        model: the model of requests that name none; empty for the one that is alive.
        max_body_bytes: largest request body.
        max_pixels: largest image, width times height.
        max_queue: jobs that may wait for one model; more are turned away.
        max_waiting: requests that may wait at once; more are answered at once.
        job_timeout: seconds that one attempt at a job may take.
        decoders: images that are decoded at once, which bounds memory.
        webhook_secret: signs webhooks, which the janitor sends; without one no ``callback_url`` is taken.
        webhook_private: whether webhooks may go to addresses that are not on the internet.
    """

    model_config = SettingsConfigDict(env_prefix="SEMPLES_", frozen=True, populate_by_name=True)

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", validation_alias="REDIS_URL")
    blobs: str = "blobs"
    model: str = ""
    max_body_bytes: int = Field(default=32 * 2**20, gt=0)
    max_pixels: int = Field(default=40_000_000, gt=0)
    max_queue: int = Field(default=1000, gt=0)
    max_waiting: int = Field(default=200, ge=0)
    job_timeout: int = Field(default=120, gt=0)
    decoders: int = Field(default=2, gt=0)
    webhook_secret: str = Field(default="", repr=False)
    webhook_private: bool = False
