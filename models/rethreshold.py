"""Masks of a folder decided anew from its stored scores: other thresholds, without the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.bundle_info import BundleInfo
from models.data.classes import ClassInfo, ClassList
from models.data.mask_records import RESULTS, read_results
from models.data.sample import Sample
from models.files import describe, provenance, read_soft_maps
from models.json_files import write_atomically
from models.mask_job import Made, MaskJob
from models.pictures import label_map_png
from models.pseudo_masks import class_result, decide
from models.segmentation import Segmentation


def stored_classes(folder: Path, info: BundleInfo) -> ClassList:
    """Return the classes of a folder's masks: the bundle's, and open ones after them as its results number them.

    Raises:
        ValueError: if one of these is the bundle's as well.
    """
    opened = {
        each["index"]: each["name"]
        for record in read_results(folder / RESULTS).values()
        for each in record["classes"]
        if each.get("zero_shot")
    }
    further = (ClassInfo(index, opened[index]) for index in sorted(opened))
    return ClassList((*info.classes.classes, *further))


def stored_samples(folder: Path, info: BundleInfo) -> list[Sample]:
    """Return the photos that a folder has scores of, by what its results say; channels are of ``stored_classes``.

    Raises:
        ValueError: if a photo's scores are missing, or the masks are another model's.
    """
    records = read_results(folder / RESULTS)
    for stem, record in records.items():
        if record["model"] != {"name": info.name, "version": info.version}:
            made_by = f"{record['model']['name']} {record['model']['version']}"
            raise ValueError(
                f"expected masks of {info.name} {info.version} in {folder}, got {made_by}"
            )
        if not _scores(folder, stem).is_file():
            raise ValueError(
                f"expected {_scores(folder, stem)} from 'make-pseudo-masks --save-scores', got no such file"
            )
    if not records:
        raise ValueError(f"expected results of make-pseudo-masks in {folder}, got none")
    classes = stored_classes(folder, info)
    return [_sample(record, classes) for record in records.values()]


def _sample(record: Mapping[str, Any], classes: ClassList) -> Sample:
    channels = sorted(classes.channel(each["name"]) for each in record["classes"])
    return Sample(Path(record["image"]), tuple(channels), folder=Path())


def redecide(
    folder: Path, info: BundleInfo, job: MaskJob, samples: Iterable[Sample]
) -> Iterator[Made]:
    """Write masks that equal what a fresh run with the job's options would give, byte by byte.

    Their records have no alignment, which only CLIP could tell.

    Args:
        folder: with stored scores.
        info: of the bundle that made them.
        job: where to, and how to decide; the refiner must be the same.
        samples: from ``stored_samples``.

    Raises:
        ValueError: if a file of scores is damaged.
    """
    for sample in samples:
        maps = read_soft_maps(_scores(folder, sample.stem))
        decision = decide(maps, job.options)
        segmentation = Segmentation(
            label_map=decision.label_map,
            confidence=decision.confidence,
            scores=maps.scores,
            cams=None,
            classes=tuple(
                class_result(index, name, decision, zero_shot=not info.classes.knows(name))
                for index, name in zip(maps.indices.tolist(), maps.names, strict=True)
            ),
            ignored=decision.ignored,
        )
        text = provenance(info, segmentation.classes, asdict(job.options.among(maps.names)))
        png = label_map_png(decision.label_map, text=text)
        write_atomically(job.output / "masks" / f"{sample.stem}.png", png)
        yield describe(segmentation, info, job.options, image=sample.name)


def _scores(folder: Path, stem: str) -> Path:
    return folder / "scores" / f"{stem}.npz"
