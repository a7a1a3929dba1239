"""Settings of the worker and the janitor: options of the command line, or environment variables.

Every option is also read from the environment, as ``SEMPLES_`` and its name; the address of Redis from ``REDIS_URL``.
"""

from __future__ import annotations

import os
import socket
import sys
import uuid
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AliasChoices, Field, PlainValidator, SecretStr, ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from models.data.images import MAX_PIXELS
from models.messages import one_line
from worker.queue.schema import BLOB_SECONDS, LEASE_SECONDS

PathText: TypeAlias = Annotated[str, PlainValidator(str)]
"""A path as the file system takes it: pydantic's own text must be UTF-8."""


def _unique_worker_name() -> str:
    """Return a name that no other worker has; a restarted container has the same host name and process id."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="SEMPLES_",
        env_ignore_empty=True,
        frozen=True,
        populate_by_name=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_parse_none_str="",  # "null" is a string as any other
    )

    redis_url: Annotated[
        str,
        Field(
            validation_alias=AliasChoices("redis_url", "REDIS_URL"),
            description="redis://, rediss:// or unix://",
        ),
    ]
    blobs: Annotated[PathText, Field(description="Blob store: a folder or an fsspec URL.")]

    @classmethod
    def from_command_line(cls, arguments: list[str]) -> Self:
        """Read options, then environment variables; SystemExit with code 2 if one is wrong, 0 after ``--help``."""
        try:
            return CliApp.run(cls, cli_args=arguments)
        except ValidationError as error:
            program = cls.model_config.get("cli_prog_name")
            parts = "; ".join(f"{_option(each['loc'])}: {each['msg']}" for each in error.errors())
            print(one_line(f"{program}: {parts}"), file=sys.stderr)  # noqa: T201
            raise SystemExit(2) from None


class WorkerSettings(_Settings):
    """Take jobs from Redis and make masks; one worker for each device.

    Each option is also an environment variable: SEMPLES_ and its name, such as SEMPLES_JOB_THREADS; Redis is REDIS_URL.
    """

    model_config = SettingsConfigDict(cli_prog_name="semples worker")

    bundle: Annotated[PathText, Field(description="Name or folder of the bundle.")] = "coco-demo"
    device: Annotated[str, Field(description="cpu, cuda, cuda:1 or auto.")] = "auto"
    precision: Annotated[str, Field(description="float32, bfloat16 or float16.")] = "float32"
    threads: Annotated[int, Field(ge=0, description="CPU threads of the model; 0: torch decides.")] = 0
    max_pixels: Annotated[int, Field(ge=1, description="Largest image.")] = MAX_PIXELS
    name: Annotated[str, Field(default_factory=_unique_worker_name, description="Unique among workers.")]
    lease: Annotated[int, Field(ge=2, description="Seconds of silence after which others take its jobs.")] = (
        LEASE_SECONDS
    )
    batch: Annotated[int, Field(ge=0, description="Most images at once; 0: eight on a GPU, one on a CPU.")] = 0
    job_threads: Annotated[int, Field(ge=1, description="Threads that decode, refine and store.")] = 2
    canary: Annotated[float, Field(ge=0, description="Seconds between two self-tests of the model; 0: none.")] = 300.0
    canary_patience: Annotated[float, Field(ge=1, description="Seconds that a self-test may take.")] = 60.0
    log: Annotated[Literal["text", "json"], Field(description="Log as text or JSON lines.")] = "text"


class JanitorSettings(_Settings):
    """Return lost jobs to the queue, feed batches, delete what has expired, send webhooks; one janitor is enough.

    Each option is also an environment variable: SEMPLES_ and its name, such as SEMPLES_INTERVAL; Redis is REDIS_URL.
    """

    model_config = SettingsConfigDict(cli_prog_name="semples janitor")

    webhook_secret: Annotated[SecretStr | None, Field(description="whsec_…; without it no webhooks are sent.")] = None
    webhook_private: Annotated[
        bool, Field(description="Webhooks may go to addresses that are not on the internet.")
    ] = False
    interval: Annotated[float, Field(ge=0.1, description="Seconds between two looks at the queues.")] = 2.0
    sweep_interval: Annotated[float, Field(gt=0, description="Seconds between two walks through the blob store.")] = (
        600.0
    )
    blob_lifetime: Annotated[float, Field(gt=0, description="Seconds after which a blob is deleted.")] = BLOB_SECONDS
    lease: Annotated[int, Field(ge=2, description="Seconds of silence after which a job counts as lost.")] = (
        LEASE_SECONDS
    )


def _option(location: tuple[int | str, ...]) -> str:
    return "--" + "-".join(map(str, location)).lower().replace("_", "-")
