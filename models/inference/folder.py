"""Pseudo masks of a whole folder; interrupted, it continues where it stopped."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from models.bundle.manifest import BundleInfo
from models.data.classes import ClassInfo, ClassList, Sample, write_class_list
from models.data.images import ImageError, read_image
from models.data.mask_files import describe, label_map_png, provenance, read_soft_maps, scores_npz
from models.data.mask_folder import (
    RESULTS,
    SUMMARY,
    claim_folder,
    drop_cut_line,
    read_results,
    summarize,
)
from models.inference.masks import MaskOptions, Segmentation, class_result, decide
from models.inference.predictor import Predictor
from models.io import write_atomically, write_json

# One photo of a folder: read it, make its mask, write its files. In this process, or in several.

Load: TypeAlias = Callable[[], Predictor]
# What results.jsonl says of a mask, or why there is none.
Made: TypeAlias = dict[str, Any] | ImageError


@dataclass(frozen=True)
class MaskJob:
    """What is done to each photo.

    Attributes:
        output: folder for ``masks/<stem>.png`` and ``scores/<stem>.npz``.
        options: from ``predictor.options``.
        save_scores: also write the scores.
        classes: what samples' channels mean: the bundle's, with open ones after them; None for the bundle's alone.
    """

    output: Path
    options: MaskOptions
    save_scores: bool
    classes: ClassList | None = None


def make_mask(predictor: Predictor, sample: Sample, job: MaskJob) -> Made:
    """Make and write the pseudo mask of one labeled photo.

    Raises:
        OSError: if a file cannot be written.
    """
    try:
        image = read_image(sample.path.read_bytes()).pixels
    except OSError as error:
        return ImageError("unreadable", f"cannot read the file: {error.strerror}")
    except ImageError as error:
        return error
    classes = job.classes or predictor.info.classes
    labels = [classes.names[channel] for channel in sample.channels]
    segmentation = predictor.pseudo_mask(image, labels, job.options, classes=classes)
    if job.save_scores:
        write_atomically(job.output / "scores" / f"{sample.stem}.npz", scores_npz(segmentation))
    text = provenance(predictor.info, segmentation.classes, asdict(job.options.for_classes(labels)))
    png = label_map_png(segmentation.label_map, text=text)
    write_atomically(job.output / "masks" / f"{sample.stem}.png", png)
    return describe(segmentation, predictor.info, job.options, image=sample.name)


def make_here(predictor: Predictor, job: MaskJob, samples: Iterable[Sample]) -> Iterator[Made]:
    """Make masks in this process, one after the other."""
    return (make_mask(predictor, sample, job) for sample in samples)


def make_in_processes(
    load: Load, job: MaskJob, samples: Iterable[Sample], *, processes: int
) -> Iterator[Made]:
    """Make masks in new processes that share nothing, each with a predictor of its own; in the samples' order.

    Args:
        load: makes the predictor, and can be pickled.
        job: what to do.
        samples: labeled photos.
        processes: how many; as many as there are devices or cores to keep busy.

    Raises:
        ChildProcessError: if one of them dies.
    """
    # Spawned, for a forked child cannot use a GPU.
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_start, initargs=(load,)
    ) as pool:
        try:
            yield from pool.map(partial(_make, job), samples)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process that makes masks died (out of memory?); run again to continue"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_predictor: Predictor | None = None  # of a child process: loaded once, used for all its photos


def _start(load: Load) -> None:
    global _predictor  # noqa: PLW0603 (what a pool's children keep between tasks)
    _predictor = load()


def _make(job: MaskJob, sample: Sample) -> Made:
    if _predictor is None:
        raise RuntimeError("expected a child process of make_in_processes")
    return make_mask(_predictor, sample, job)


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


# Masks of a folder decided anew from its stored scores: other thresholds, without the model.


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
        text = provenance(info, segmentation.classes, asdict(job.options.for_classes(maps.names)))
        png = label_map_png(decision.label_map, text=text)
        write_atomically(job.output / "masks" / f"{sample.stem}.png", png)
        yield describe(segmentation, info, job.options, image=sample.name)


def _scores(folder: Path, stem: str) -> Path:
    return folder / "scores" / f"{stem}.npz"
