"""A worker's samples on their way to the API, which alone is scraped. Wire layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from redis import Redis


def samples_key(worker: str) -> str:
    """Return the key that holds a worker's samples."""
    return f"semples:metrics:{worker}"


def publish_samples(redis: Redis, worker: str, text: bytes, *, lease: int) -> None:
    """Store a worker's samples, in Prometheus's text format, for as long as its lease holds."""
    redis.set(samples_key(worker), text, ex=lease)


def published_samples(redis: Redis, workers: Sequence[str]) -> dict[str, str]:
    """Return the samples of those workers that have published some, by worker."""
    if not workers:
        return {}
    texts = cast("list[bytes | None]", redis.mget([samples_key(worker) for worker in workers]))
    return {
        worker: text.decode(errors="replace")
        for worker, text in zip(workers, texts, strict=True)
        if text is not None
    }
