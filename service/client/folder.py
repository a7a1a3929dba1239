"""A folder of masks that a service made, laid out as ``semples make-pseudo-masks`` does, and continued like that."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from models.data.classes import Sample, write_class_list
from models.data.labels import read_folder
from models.data.mask_folder import (
    RESULTS,
    SUMMARY,
    claim_folder,
    drop_cut_line,
    iter_results,
    summarize,
)
from models.inference.masks import MaskOptions, fill_defaults
from models.io import write_atomically, write_json
from service.client.types import Job, Model, PseudoMaskOptions

# What is to be made of a folder of photos.


@dataclass(frozen=True)
class Plan:
    """A folder of photos and what is to be made of it.

    Attributes:
        samples: the photos with their labels; those without a label are passed over.
        output: folder for the masks.
        model: that makes them.
        options: how.
        save_scores: also keep the scores.
    """

    samples: Sequence[Sample]
    output: Path
    model: Model
    options: MaskOptions
    save_scores: bool

    @property
    def settings(self) -> dict[str, Any]:
        """What must stay the same from one call to the next."""
        return {
            "model": {"name": self.model.name, "version": self.model.version},
            "options": vars(self.options),
            "scores": self.save_scores,
        }

    @property
    def labeled(self) -> Iterator[Sample]:
        """The photos that masks are made of."""
        return (sample for sample in self.samples if sample.channels)

    def labels(self, sample: Sample) -> list[str]:
        """Return the names of a photo's classes."""
        return [self.model.classes.names[channel] for channel in sample.channels]


def plan(
    places: tuple[Path, Path, Path],
    model: Model,
    *,
    save_scores: bool,
    options: PseudoMaskOptions,
) -> Plan:
    """Read what is to be done.

    Args:
        places: folder of photos, their labels as ``read_folder`` takes them, and folder for the masks.
        model: of the service.
        save_scores: also keep the scores.
        options: the model's name in them is passed over.

    Raises:
        ValueError: if the labels, the photos and the model do not fit together, or an option is out of range.
        OSError: if the labels cannot be read.
    """
    images, labels, output = places
    samples = read_folder(images, labels, model.classes)
    masks = (output / "masks").resolve()
    if any(sample.path.parent.resolve() == masks for sample in samples):
        raise ValueError(f"expected an output folder that keeps the images, got theirs: {output}")
    chosen = fill_defaults(
        model.defaults,
        refine=options.get("refine"),
        background_threshold=options.get("background_threshold"),
        background_power=options.get("background_power"),
        min_confidence=options.get("min_confidence"),
    )
    return Plan(samples, output, model, chosen, save_scores)


@dataclass(frozen=True)
class Outcome:
    """What became of a folder.

    Attributes:
        made: masks written by this call.
        kept: masks that an earlier call had written.
        empty: masks, of those, in which no class has a pixel.
        unlabeled: photos that the labels say nothing of, and that are passed over.
        others: masks of earlier calls that are still in the folder, of photos that are not among the labels now.
        failed: (image, reason) of photos that there is no mask of; the next call tries them again.
    """

    made: int
    kept: int
    empty: int
    unlabeled: int
    others: int
    failed: tuple[tuple[str, str], ...]


class OutputFolder:
    """The folder while masks come in. Each is written whole; a kill at any moment leaves what can be continued.

    Nothing of photos, masks and records stays in memory but the names.

    Args:
        plan: what is to be done.

    Attributes:
        total: photos with labels.
        todo: those of them that have no mask yet.

    Raises:
        ValueError: if the folder holds masks of another model or other options.
        OSError: if it cannot be written.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        output = plan.output
        claim_folder(output, plan.settings)
        (output / SUMMARY).unlink(missing_ok=True)  # it says that the folder is whole
        write_class_list(output / "classes.txt", plan.model.classes)
        drop_cut_line(output / RESULTS)
        kept = self._kept()
        self.total = sum(1 for _ in plan.labeled)
        self._kept_count = len(kept)
        self.todo = iter([sample for sample in plan.labeled if sample.stem not in kept])
        self._made = 0
        self._failed: list[tuple[str, str]] = []
        self._results = (output / RESULTS).open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._results.close()

    def keep(self, sample: Sample, job: Job, mask: bytes, scores: bytes | None) -> None:
        """Write what came out for a photo.

        Raises:
            ValueError: if another model made it: the service has changed.
            OSError: if it cannot be written.
        """
        record = describe(job, image=sample.name)
        expected = self._plan.settings["model"]
        if record["model"] != expected:
            raise ValueError(
                f"expected masks of {expected['name']} {expected['version']}, got {job.model} {job.version}: "
                "the service has another model now"
            )
        if scores is not None:
            write_atomically(self._plan.output / "scores" / f"{sample.stem}.npz", scores)
        write_atomically(self._mask(sample.stem), mask)
        self._results.write(json.dumps({"stem": sample.stem, **record}) + "\n")
        self._results.flush()
        self._made += 1

    @property
    def done(self) -> int:
        """How many photos have their masks."""
        return self._kept_count + self._made

    @property
    def failed(self) -> int:
        """How many photos can have none."""
        return len(self._failed)

    def fail(self, sample: Sample, reason: str) -> None:
        """Note why there is no mask of a photo."""
        self._failed.append((sample.name, reason))

    def finish(self) -> Outcome:
        """Write the summary, which says that the folder is whole.

        Raises:
            OSError: if it cannot be written.
        """
        plan, empty, others = self._plan, 0, 0
        failed = {name for name, _ in self._failed}
        wanted = {sample.stem for sample in plan.labeled if sample.name not in failed}

        def counted() -> Iterator[Mapping[str, Any]]:
            nonlocal empty, others
            for stem, record in latest(plan.output / RESULTS):
                if stem in wanted:
                    empty += all(each["box"] is None for each in record["classes"])
                    yield record
                else:
                    others += self._mask(stem).is_file()

        unlabeled = sum(not sample.channels for sample in plan.samples)
        summary = summarize(
            counted(), images=len(plan.samples), unlabeled=unlabeled, failed=self._failed
        )
        write_json(plan.output / SUMMARY, {**plan.settings, **summary})
        failures = tuple(self._failed)
        return Outcome(self._made, self._kept_count, empty, unlabeled, others, failures)

    def _kept(self) -> set[str]:
        """Stems of the photos that an earlier call made the masks of, for the labels that they have now."""
        samples = {sample.stem: sample for sample in self._plan.labeled}
        kept: set[str] = set()
        for stem, record in latest(self._plan.output / RESULTS):
            sample = samples.get(stem)
            if sample is not None and self._is_done(sample, record):
                kept.add(stem)
        return kept

    def _is_done(self, sample: Sample, record: Mapping[str, Any]) -> bool:
        known = [each["name"] for each in record["classes"]] == self._plan.labels(sample)
        scores = self._plan.output / "scores" / f"{sample.stem}.npz"
        return (
            known
            and record["image"] == sample.name
            and self._mask(sample.stem).is_file()
            and (not self._plan.save_scores or scores.is_file())
        )

    def _mask(self, stem: str) -> Path:
        return self._plan.output / "masks" / f"{stem}.png"


def latest(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the last record of each photo, one at a time."""
    last = {stem: number for number, (stem, _) in enumerate(iter_results(path))}
    for number, (stem, record) in enumerate(iter_results(path)):
        if last.get(stem) == number:
            yield stem, record


def describe(job: Job, *, image: str) -> dict[str, Any]:
    """Return what ``results.jsonl`` says of a photo, as ``models.data.mask_files.describe`` does."""
    size, options = job.document["image"], job.document["options"]
    known = {each.name: options[each.name] for each in fields(MaskOptions) if each.name in options}
    return {
        "image": image,
        "size": {"width": size["width"], "height": size["height"]},
        "model": {"name": job.model, "version": job.version},
        "options": vars(MaskOptions(**known)),
        "classes": [vars(each) for each in job.classes],
        "ignored": job.ignored,
    }
