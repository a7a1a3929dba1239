"""The clients' methods, as flows: what is sent, and what is made of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

from service.client import documents
from service.client.calls import (
    UNPACK_SECONDS,
    Call,
    ImageLike,
    PhotoOptions,
    PseudoMaskOptions,
    SegmentOptions,
    Thresholds,
    batch_call,
    checked,
    image_bytes,
    pseudo_mask_call,
    quoted,
    segment_call,
)
from service.client.documents import Batch, Model
from service.client.flows import (
    Flow,
    MaskedJob,
    Pause,
    Retries,
    Send,
    ask,
    fetch,
    get,
    post,
    wait_of,
)
from service.client.listening import OnProgress
from service.client.results import FinishedMask, Mask

ArchiveFormat = Literal["voc", "coco", "cvat"]

BATCH_PAUSES: Final = (1.0, 2.0, 5.0, 10.0)
"""Seconds between two looks at a batch; the last one again and again."""


def pseudo_mask(
    image: ImageLike,
    labels: str | Sequence[str],
    options: PhotoOptions,
    retries: Retries,
    on_progress: OnProgress | None,
) -> Flow[MaskedJob]:
    """Make a mask of an image from the labels of what it shows."""
    call = pseudo_mask_call(image_bytes(image), labels, options, wait=wait_of(on_progress))
    return (yield from post(call, retries, on_progress))


def segment(
    image: ImageLike, options: SegmentOptions, retries: Retries, on_progress: OnProgress | None
) -> Flow[MaskedJob]:
    """Make a mask of whatever an image shows."""
    call = segment_call(image_bytes(image), options, wait=wait_of(on_progress))
    return (yield from post(call, retries, on_progress))


def rethreshold(job: str | Mask, thresholds: Thresholds, retries: Retries) -> Flow[Mask]:
    """Decide a finished job's mask anew."""
    job_id = job.job_id if isinstance(job, Mask) else job
    chosen = checked(thresholds, Thresholds)
    return Mask(job_id, (yield from fetch(f"/jobs/{quoted(job_id)}/mask.png", retries, **chosen)))


def file(masked: MaskedJob | FinishedMask, name: str, retries: Retries) -> Flow[bytes]:
    """Fetch one more file of a job."""
    return (yield from fetch(f"/jobs/{quoted(masked.job.id)}/{name}", retries))


def models(retries: Retries) -> Flow[tuple[Model, ...]]:
    """List the models."""
    return (yield from get("/models", documents.models, retries))


def model(name: str, retries: Retries) -> Flow[Model]:
    """Describe one model."""
    return (yield from get(f"/models/{quoted(name)}", documents.model, retries))


def chosen_model(name: str | None, retries: Retries) -> Flow[Model]:
    """Return the model of a name, or the one that is taken without any.

    Raises:
        ValueError: if there is none.
    """
    known = yield from models(retries)
    found = [each for each in known if (each.default if name is None else each.name == name)]
    if not found:
        names = ", ".join(each.name for each in known) or "none"
        raise ValueError(f"expected a model of the service ({names}), got {name or 'no default'}")
    return found[0]


def submit_batch(archive: str | Path, options: PseudoMaskOptions, retries: Retries) -> Flow[Batch]:
    """Post a zip of photos and labels."""
    answer = yield from ask(batch_call(Path(archive), options), retries)
    return documents.read(answer, documents.batch)


def batch_status(batch_id: str, retries: Retries) -> Flow[Batch]:
    """Say where a batch stands."""
    return (yield from get(f"/batches/{quoted(batch_id)}", documents.batch, retries))


def wait_for_batch(batch_id: str, retries: Retries) -> Flow[Batch]:
    """Return a batch once it has ended."""
    looks = 0
    while True:
        batch = yield from batch_status(batch_id, retries)
        if batch.ended:
            return batch
        yield Pause(BATCH_PAUSES[min(looks, len(BATCH_PAUSES) - 1)])
        looks += 1


def cancel_batch(batch_id: str, retries: Retries) -> Flow[None]:
    """Cancel what is not done of a batch; forget one that has ended."""
    yield from ask(Call("DELETE", f"/batches/{quoted(batch_id)}"), retries)


def batch_items(
    batch_id: str, status: str | None, after: Any, retries: Retries
) -> Flow[tuple[list[dict[str, Any]], Any]]:
    """Return a page of a batch's photos, and what the next page comes after; None if there is none."""
    path = f"/batches/{quoted(batch_id)}/items"
    return (yield from get(path, _page, retries, status=status, after=after))


def _page(said: Any) -> tuple[list[dict[str, Any]], Any]:
    return list(said["items"]), said.get("next")


def batch_report(batch_id: str, retries: Retries) -> Flow[dict[str, Any]]:
    """Return what a batch came to."""
    return (yield from get(f"/batches/{quoted(batch_id)}/report", dict[str, Any], retries))


def save_archive(
    batch_id: str, path: str | Path, format: ArchiveFormat, retries: Retries
) -> Flow[Path]:
    """Write a batch's masks as a zip, whole or not at all; it may be larger than memory.

    Raises:
        OSError: if it cannot be written.
    """
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    # Nothing comes before all is packed.
    path_of = f"/batches/{quoted(batch_id)}/archive.zip"
    call = Call("GET", path_of, query={"format": format}, patience=UNPACK_SECONDS)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as opened:

            def begin() -> None:
                opened.seek(0)
                opened.truncate()

            yield from ask(Send(call, opened.write, begin), retries)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target
