"""The API's settings, from environment variables."""

from __future__ import annotations

import re
from typing import Final, Self

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.middleware.conventions import parse_networks, parse_prefix
from worker.settings import PathText

_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@]+")


class Settings(BaseSettings):
    """Where queue and blobs are, and the API's limits: SEMPLES_ and the name in capitals, but Redis is REDIS_URL."""

    model_config = SettingsConfigDict(env_prefix="SEMPLES_", frozen=True, populate_by_name=True)

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", validation_alias="REDIS_URL")
    blobs: PathText = "blobs"  # directory or fsspec URL, shared with the workers
    model: str = ""  # for requests that name none; empty for one with a live worker

    max_body_bytes: int = Field(default=32 * 2**20, gt=0)
    max_batch_bytes: int = Field(default=2 * 2**30, gt=0)  # of a batch's body, kept on disk
    max_batch_photos: int = Field(default=100_000, gt=0)
    max_zips: int = Field(default=4, gt=0)  # received at once; archives made or sent at once
    spool: PathText = ""  # folder on a disk for these; empty for the system's temporary one
    max_pixels: int = Field(default=40_000_000, gt=0)  # of an image, width times height
    max_queue: int = Field(default=1000, gt=0)  # waiting jobs of one model; more are refused
    max_waiting: int = Field(default=200, ge=0)  # requests that wait for results; more do not wait
    max_listening: int = Field(default=200, ge=0)  # requests for events; more are refused
    decoders: int = Field(default=2, gt=0)  # images decoded at once, which bounds memory

    # Timeout in seconds of each part of a job (preprocess, forward, postprocess): base, more for each megapixel, limit.
    job_timeout: int = Field(default=120, gt=0)
    job_timeout_per_megapixel: float = Field(default=5.0, ge=0)
    job_timeout_max: int = Field(default=300, gt=0)
    # Seconds of a request's body, and the received bytes that add a second to that.
    body_seconds: float = Field(default=60.0, gt=0)
    body_rate: int = Field(default=16 * 1024, gt=0)

    keys_file: PathText = ""  # of API keys, as ``semples api-key`` prints them; read again when changed
    keys: str = ""  # more such lines, with commas or line breaks between them
    open: bool = False  # no keys are needed on any address: something else protects the API
    published: str = ""  # address of a container's published port, instead of the one listened on
    rate: str = ""  # of each client's posts of images, such as "60/minute"; empty for any
    trusted_proxies: str = ""  # addresses and networks whose X-Forwarded-For, -Proto and -Prefix are trusted
    root_path: str = ""  # below which a proxy serves the API, such as "/ml"
    cors_origins: str = ""  # of browsers' pages elsewhere that may call the API, such as "https://a.example"; or "*"

    webhook_secret: str = Field(default="", repr=False)  # without it no callback_url is accepted
    webhook_private: bool = False  # whether webhooks may go to addresses not on the internet

    # Of the Label Studio whose images may be fetched, empty for none; and of a user there.
    label_studio_url: str = Field(default="", pattern=r"^(https?://[^/?#@]+(/.*)?)?$")
    label_studio_token: str = Field(default="", repr=False)

    @classmethod
    def load(cls, **given: str) -> Self:
        """Read the settings from the environment, and those given; ValueError in one line, without their values."""
        try:
            return cls(**given)  # type: ignore[arg-type]
        except ValidationError as error:
            found = [(_variable(each["loc"]), each["msg"].removeprefix("Value error, ")) for each in error.errors()]
            raise ValueError("; ".join(f"{name}: {message}" for name, message in found)) from None

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        parse_networks(value)  # "*" would let every client pick its address
        return value

    @field_validator("root_path")
    @classmethod
    def _is_prefix(cls, value: str) -> str:
        return parse_prefix(value)

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        for each in filter(None, map(str.strip, value.split(","))):
            if each != "*" and not _ORIGIN.fullmatch(each):
                raise ValueError(f'expected "*" or origins such as "https://a.example:8443", got {each!r}')
        return value


def _variable(location: tuple[int | str, ...]) -> str:
    name = str(location[0]).upper()
    return name if name == "REDIS_URL" else f"SEMPLES_{name}"
