"""Pseudo masks of a whole folder; interrupted, it continues where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.bundle_info import BundleInfo
from models.data.classes import write_class_list
from models.data.mask_records import RESULTS, SUMMARY, claim_folder, drop_cut_line, read_results
from models.data.mask_summary import summarize
from models.data.sample import Sample
from models.images import ImageError
from models.json_files import write_json
from models.mask_job import Made, MaskJob


@dataclass(frozen=True)
class Outcome:
    """What became of a folder.

    Attributes:
        made: masks written by this call.
        kept: masks that an earlier call had written.
        failed: (image, reason) of those that could not be read.
    """

    made: int
    kept: int
    failed: tuple[tuple[str, str], ...]


def make_pseudo_masks(
    info: BundleInfo,
    samples: Sequence[Sample],
    job: MaskJob,
    make: Callable[[Sequence[Sample]], Iterable[Made]],
    *,
    on_image: Callable[[], None],
) -> Outcome:
    """Write ``masks/<stem>.png`` for every labeled image, ``classes.txt`` and ``summary.json``.

    Args:
        info: of the bundle that makes the masks.
        samples: images with their labels; those without a label are passed over.
        job: what to make of them, and where.
        make: does the job for samples, in their order.
        on_image: called after each image.

    Raises:
        ValueError: if the folder holds masks of another model or other options.
        OSError: if it cannot be written.
    """
    output = job.output
    masks = (output / "masks").resolve()
    if any(sample.path.parent.resolve() == masks for sample in samples):
        raise ValueError(f"expected an output folder that keeps the images, got theirs: {output}")
    settings = _settings(job, info)
    claim_folder(output, settings)
    (output / SUMMARY).unlink(missing_ok=True)  # it says that the folder is whole
    classes = job.classes or info.classes
    write_class_list(output / "classes.txt", classes)
    drop_cut_line(output / RESULTS)
    done = read_results(output / RESULTS)
    labeled = [sample for sample in samples if sample.channels]
    kept = {sample.stem for sample in labeled if _is_done(sample, done, output, classes.names)}
    for _ in kept:
        on_image()
    rest = [sample for sample in labeled if sample.stem not in kept]
    failed: list[tuple[str, str]] = []
    with (output / RESULTS).open("a", encoding="utf-8") as results:
        for sample, record in zip(rest, make(rest), strict=True):
            if isinstance(record, ImageError):
                failed.append((sample.name, str(record)))
                done.pop(sample.stem, None)
            else:
                done[sample.stem] = record
                results.write(json.dumps({"stem": sample.stem, **record}) + "\n")
                results.flush()
            on_image()
    records = (done[sample.stem] for sample in labeled if sample.stem in done)
    summary = summarize(
        records, images=len(samples), unlabeled=len(samples) - len(labeled), failed=failed
    )
    write_json(output / SUMMARY, {**settings, **summary})
    return Outcome(len(rest) - len(failed), len(kept), tuple(failed))


def _is_done(
    sample: Sample, done: Mapping[str, dict[str, Any]], output: Path, names: Sequence[str]
) -> bool:
    """Whether an earlier call made the mask of this very photo, for the labels that it has now."""
    record = done.get(sample.stem)
    if record is None or record["image"] != sample.name:
        return False
    labels = [names[channel] for channel in sample.channels]
    known = [each["name"] for each in record["classes"]] == labels
    return known and (output / "masks" / f"{sample.stem}.png").is_file()


def _settings(job: MaskJob, info: BundleInfo) -> dict[str, Any]:
    settings = {
        "model": {"name": info.name, "version": info.version},
        "options": vars(job.options),
        "scores": job.save_scores,
    }
    names = (job.classes or info.classes).names
    if opened := [name for name in names if not info.classes.knows(name)]:
        settings["zero_shot"] = opened  # in their order, which numbers them
    return settings
