"""One photo of a folder: read it, make its mask, write its files. In this process, or in several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from models.data.classes import ClassList
from models.data.sample import Sample
from models.files import describe, provenance, scores_npz
from models.images import ImageError, read_image
from models.json_files import write_atomically
from models.pictures import label_map_png
from models.predictor import Predictor
from models.segmentation import MaskOptions

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
    text = provenance(predictor.info, segmentation.classes, asdict(job.options.among(labels)))
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
