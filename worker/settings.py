"""The worker's settings; the command line in ``python -m worker`` fills them, environment included."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass, field

from models.data.images import MAX_PIXELS
from worker.inference.batcher import Sizes
from worker.queue.schema import LEASE_SECONDS

CANARY_SECONDS = 300.0
CANARY_PATIENCE_SECONDS = 60.0


def default_name() -> str:
    """Return a name that no other worker has, nor this one's predecessor.

    Host and process alone would not do: a restarted container has the same of both, and Redis
    remembers a killed worker's name for minutes.
    """
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


@dataclass(frozen=True)
class WorkerSettings:
    """Where the worker finds its jobs, blobs and model.

    Attributes:
        redis_url: redis://, rediss:// or unix://.
        blobs: directory or fsspec URL of the blob store.
        bundle: name of a shipped bundle, or a folder.
        device: "cpu", "cuda", "cuda:1"…; "auto" takes a GPU if there is one.
        precision: in which networks compute: "float32", "bfloat16" or "float16".
        threads: CPU threads of the model; 0 leaves the choice to torch.
        name: unique among workers.
        max_pixels: largest image, width times height; as the service's.
        lease: seconds of silence after which this worker counts as dead.
        batch: most images that go through the networks at once; 0: as suits the device.
        job_threads: that decode, refine and store.
        canary: seconds without proof that the model works, after which an idle worker sends its
            canary image again; 0 turns that off.
        canary_patience: seconds that the canary image may take.
    """

    redis_url: str
    blobs: str
    bundle: str = "coco-demo"
    device: str = "auto"
    precision: str = "float32"
    threads: int = 0
    name: str = field(default_factory=default_name)
    lease: int = LEASE_SECONDS
    max_pixels: int = MAX_PIXELS
    batch: int = 0
    job_threads: int = Sizes.threads
    canary: float = CANARY_SECONDS
    canary_patience: float = CANARY_PATIENCE_SECONDS
