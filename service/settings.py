"""The API's settings, from environment variables."""

from __future__ import annotations

from ipaddress import ip_network

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Where the queue and the blobs are, and the API's limits.

    Attributes:
        redis_url: redis://, rediss:// or unix://; from ``REDIS_URL``.
        blobs: directory or fsspec URL of the blob store, shared with the workers.
        model: the model of requests that name none; empty for one with a live worker.
        max_body_bytes: largest request body.
        max_batch_bytes: largest body of a batch, whose zip is kept on disk.
        max_batch_photos: most photos in it.
        max_zips: zips that may be received at once, and archives of masks that may be made or sent; more are refused.
        spool: folder on a disk for zips that are received or sent; empty for the system's temporary one.
        max_pixels: largest image, width times height.
        max_queue: jobs that may wait for one model; more are refused.
        max_waiting: requests that may wait for a result at once; more are answered without waiting.
        max_listening: requests that may listen to events at once; more are refused.
        job_timeout: seconds that one attempt at a job may take, whatever the image's size.
        job_timeout_per_megapixel: seconds on top of that for each million pixels.
        job_timeout_max: upper bound of these two together.
        decoders: images that are decoded at once, which bounds memory.
        keys_file: file of API keys, a line each as ``semples api-key`` prints it; read again when it changes.
        keys: such lines, with commas or line breaks between them, beside the file's.
        open: whether no keys are needed on any address, because something else protects the API.
        published: address at which a container's port is published, instead of the one that is listened on.
        rate: posts of images that one key, or without keys one address, may make, such as "60/minute"; empty for any.
        trusted_proxies: addresses and networks, with commas between them, whose X-Forwarded-For is trusted.
        body_seconds: seconds that a request's body may take, whatever its size.
        body_rate: received bytes that add a second to that, for large files on slow lines.
        webhook_secret: signs webhooks, which the janitor sends; without one no ``callback_url`` is accepted.
        webhook_private: whether webhooks may go to addresses that are not on the internet.
        label_studio_url: http:// or https:// URL of the Label Studio whose images may be fetched; empty for none.
        label_studio_token: of a user there who may see the images.
    """

    model_config = SettingsConfigDict(env_prefix="SEMPLES_", frozen=True, populate_by_name=True)

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", validation_alias="REDIS_URL")
    blobs: str = "blobs"
    model: str = ""
    max_body_bytes: int = Field(default=32 * 2**20, gt=0)
    max_batch_bytes: int = Field(default=2 * 2**30, gt=0)
    max_batch_photos: int = Field(default=100_000, gt=0)
    max_zips: int = Field(default=4, gt=0)
    spool: str = ""
    max_pixels: int = Field(default=40_000_000, gt=0)
    max_queue: int = Field(default=1000, gt=0)
    max_waiting: int = Field(default=200, ge=0)
    max_listening: int = Field(default=200, ge=0)
    job_timeout: int = Field(default=120, gt=0)
    job_timeout_per_megapixel: float = Field(default=5.0, ge=0)
    job_timeout_max: int = Field(default=300, gt=0)
    decoders: int = Field(default=2, gt=0)
    keys_file: str = ""
    keys: str = ""
    open: bool = False
    published: str = ""
    rate: str = ""
    trusted_proxies: str = ""
    body_seconds: float = Field(default=60.0, gt=0)
    body_rate: int = Field(default=16 * 1024, gt=0)
    webhook_secret: str = Field(default="", repr=False)
    webhook_private: bool = False
    label_studio_url: str = Field(default="", pattern=r"^(https?://[^/?#@]+(/.*)?)?$")
    label_studio_token: str = Field(default="", repr=False)

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        # "*" would let every client pick its address.
        for each in filter(None, map(str.strip, value.split(","))):
            ip_network(each, strict=False)
        return value
