"""Pseudo masks of a folder of images: by a predictor in this process or in several, or from stored scores.

Free of torch unless a predictor is given. Interrupted, it continues where it stopped.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from models.data.classes import ClassInfo, ClassList, Sample
from models.data.images import ImageError, read_image
from models.data.mask_files import describe, mask_png, read_soft_maps, scores_npz
from models.data.mask_folder import (
    RESULTS,
    MaskFolderWriter,
    Outcome,
    mask_settings,
    read_results,
    scores_path,
    write_mask,
)
from models.data.photo_files import is_of_one_file, read_photo
from models.inference.masks import MaskOptions, Segmentation, class_result, decide

if TYPE_CHECKING:
    from models.bundle.manifest import BundleInfo
    from models.inference.predictor import Predictor

Made: TypeAlias = dict[str, Any] | ImageError
"""A mask's record for ``results.jsonl``, or the reason why there is none."""


@dataclass(frozen=True)
class MaskJob:
    """How and where masks are made."""

    output: Path  # the mask folder
    options: MaskOptions  # from ``predictor.options``
    save_scores: bool
    classes: ClassList | None = None  # the bundle's and zero-shot ones, if any
    overwrite: bool = False  # also what is not ours


def make_pseudo_masks(
    info: BundleInfo,
    samples: Sequence[Sample],
    job: MaskJob,
    make: Callable[[Sequence[Sample]], Iterable[Made]],
    *,
    on_image: Callable[[], None],
) -> Outcome:
    """Make the masks of all labeled samples that have none yet; see ``models.data.mask_folder`` for the files.

    ``make`` writes samples' masks and yields their records, in order.

    Raises:
        ValueError: if the folder holds masks of another model or other options.
    """
    classes = job.classes or info.classes
    settings = mask_settings(
        {"name": info.name, "version": info.version},
        job.options,
        scores=job.save_scores,
        zero_shot=[name for name in classes.names if not info.classes.knows(name)],
    )
    with MaskFolderWriter(job.output, samples, classes, settings, overwrite=job.overwrite) as folder:
        for _ in range(folder.kept):
            on_image()
        for sample, made in zip(folder.todo, make(folder.todo), strict=True):
            if isinstance(made, ImageError):
                folder.fail(sample, str(made))
            else:
                folder.add(sample, made)
            on_image()
        return folder.finish()


def make_here(predictor: Predictor, job: MaskJob, samples: Iterable[Sample]) -> Iterator[Made]:
    """Make masks in this process, one after the other."""
    return (_make_mask(predictor, job, sample) for sample in samples)


def make_in_processes(
    load: Callable[[], Predictor], job: MaskJob, samples: Iterable[Sample], *, processes: int
) -> Iterator[Made]:
    """Make masks in new processes, in the samples' order; each loads a predictor by ``load``, which can be pickled.

    Raises:
        ChildProcessError: if one of them dies.
    """
    # Spawned, for a forked child cannot use a GPU.
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_start, initargs=(load,)
    ) as pool:
        try:
            yield from pool.map(partial(_make_in_child, job), samples)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process that makes masks died (out of memory?); run again to continue"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_predictor: Predictor | None = None  # of a child process: loaded once, used for all its images


def _start(load: Callable[[], Predictor]) -> None:
    global _predictor  # noqa: PLW0603 (what a pool's children keep between tasks)
    _predictor = load()


def _make_in_child(job: MaskJob, sample: Sample) -> Made:
    if _predictor is None:
        raise RuntimeError("expected a child process of make_in_processes")
    return _make_mask(_predictor, job, sample)


def _make_mask(predictor: Predictor, job: MaskJob, sample: Sample) -> Made:
    try:
        image = read_image(read_photo(sample.path, sample.name)).pixels
    except ImageError as error:
        return error
    classes = job.classes or predictor.info.classes
    labels = [classes.names[channel] for channel in sample.channels]
    segmentation = predictor.pseudo_mask(image, labels, job.options, classes=classes)
    return _write(segmentation, predictor.info, job, sample)


def _write(segmentation: Segmentation, info: BundleInfo, job: MaskJob, sample: Sample) -> Made:
    scores = scores_npz(segmentation) if job.save_scores else None
    try:
        write_mask(job.output, sample.stem, mask_png(segmentation, info, job.options), scores)
    except OSError as error:
        if not is_of_one_file(error):
            raise
        return ImageError("unreadable", f"cannot write its files: {error.strerror}")
    return describe(segmentation, info, job.options, image=sample.name)


def stored_classes(folder: Path, info: BundleInfo) -> ClassList:
    """Return the classes of a folder's masks: the bundle's, then zero-shot classes as its records number them."""
    opened = {
        each["index"]: each["name"]
        for record in read_results(folder / RESULTS).values()
        for each in record["classes"]
        if each.get("zero_shot")
    }
    further = (ClassInfo(index, opened[index]) for index in sorted(opened))
    return ClassList((*info.classes.classes, *further))


def stored_samples(folder: Path, info: BundleInfo) -> list[Sample]:
    """Return the images that a folder has scores of, by its records; channels are of ``stored_classes``.

    Raises:
        ValueError: if an image's scores are missing, or the masks are another model's.
    """
    records = read_results(folder / RESULTS)
    for stem, record in records.items():
        if record["model"] != {"name": info.name, "version": info.version}:
            made_by = f"{record['model']['name']} {record['model']['version']}"
            raise ValueError(f"expected masks of {info.name} {info.version} in {folder}, got {made_by}")
        if not scores_path(folder, stem).is_file():
            raise ValueError(
                f"expected {scores_path(folder, stem)} from 'make-pseudo-masks --save-scores', got no such file"
            )
    if not records:
        raise ValueError(f"expected results of make-pseudo-masks in {folder}, got none")
    classes = stored_classes(folder, info)
    return [
        Sample(
            Path(record["image"]),
            tuple(sorted(classes.channel(each["name"]) for each in record["classes"])),
            folder=Path(),
            mask_name=stem,
        )
        for stem, record in records.items()
    ]


def redecide(folder: Path, info: BundleInfo, job: MaskJob, samples: Iterable[Sample]) -> Iterator[Made]:
    """Write masks that equal a fresh run's with the job's options, byte by byte, from a folder's stored scores.

    ``samples`` are from ``stored_samples``; the refiner must be the same. Records have no alignment, which needs CLIP.
    """
    for sample in samples:
        try:
            maps = read_soft_maps(scores_path(folder, sample.stem))
        except ValueError as error:
            yield ImageError("unreadable", str(error))
            continue
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
        yield _write(segmentation, info, job, sample)
