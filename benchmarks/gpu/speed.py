"""What is measured: photos/s of the predictor and of the service, seconds of a training step, peak memory."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch

from benchmarks.clip_vit import build
from benchmarks.gpu.cases import BUNDLE, NAMES, demo_bundle, tiny_networks, tiny_prompts
from benchmarks.gpu.compare import FLOAT32
from benchmarks.gpu.steps import PAPER_STAGES, TrainingStep, generator_step, step_seconds
from benchmarks.gpu.table import Item, Outcome
from benchmarks.overhead import synthetic_photo
from benchmarks.predictor_speed import with_weaktr
from benchmarks.service_load.load import Bounds, LabeledPhoto, Target, press
from benchmarks.service_load.measure import PATH, WARM_UP
from benchmarks.service_load.programs import Model, service
from benchmarks.stage_speed import NAMES as PAPER_NAMES
from benchmarks.stage_speed import forget_peak, megabytes, paper_networks, random_batch
from models.bundle.bundle import Bundle
from models.data.images import read_image
from models.inference.masks import LabeledImage
from models.inference.predictor import Predictor
from worker.inference.batcher import default_batch_size

PRECISIONS: Final = (FLOAT32, "bfloat16")
LABEL: Final = NAMES[0]


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    ``stage_batches`` are tried until one fits into memory; ``seconds`` is how long each measurement lasts.
    """

    batches: tuple[int, ...] = (1, 8, 32)
    photo: tuple[int, int] = (500, 375)  # width, height
    image_size: int | None = None  # longer side of the working images; None: the bundle's own
    stage_batches: tuple[int, ...] = (64, 32, 16, 8, 4)  # the paper's is 64
    paper_networks: bool = True  # in the stages; else the tiny ones
    seconds: float = 2.0
    requests: int = 2000
    concurrency: int = 32


# A CPU takes minutes for a step of 64.
CPU_SIZES: Final = Sizes(batches=(1, 8), stage_batches=(8,), concurrency=8)
SMALL: Final = Sizes(
    batches=(1, 2), photo=(60, 45), image_size=64, stage_batches=(4,), paper_networks=False, seconds=0.1, requests=10,
    concurrency=2,
)  # fmt: skip

# What the predictor is measured with, by name: (device, image size) → bundle. Another network is one line here.
PREDICTORS: Final[Mapping[str, Callable[[torch.device, int | None], Bundle]]] = MappingProxyType(
    {
        BUNDLE: lambda device, size: demo_bundle(device, image_size=size),
        "a random WeakTr (DeiT-S)": lambda device, size: with_weaktr(
            replace(demo_bundle(device, image_size=size), segmenter=None)
        ),
        "clip_vit, a random ViT-B/16": lambda device, size: with_clip_vit(demo_bundle(device, image_size=size)),
    }
)


def with_clip_vit(bundle: Bundle) -> Bundle:
    """Return a bundle whose mask generator is a ViT-B/16 that knows nothing; its time is the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = build(len(bundle.info.classes)).eval().requires_grad_(False)
    return replace(bundle, segmenter=None, generator=generator.to(bundle.class_text.device))


def predictor_items(sizes: Sizes, device: torch.device) -> Iterator[Item]:
    """Return the measurements of the predictor: each batch without a refiner, the largest with the bundle's own."""
    last = sizes.batches[-1]
    for name in PREDICTORS:
        for precision in PRECISIONS:
            predictor = cache(partial(_new_predictor, name, precision, sizes, device))
            for batch in sizes.batches:
                measure = partial(_photos_per_second, predictor, batch, "none", sizes)
                yield Item(f"predictor, {name}, no refiner, batch {batch}", precision, measure, needs=10)
            measure = partial(_photos_per_second, predictor, last, None, sizes)
            yield Item(f"predictor, {name}, its refiners, batch {last}", precision, measure, needs=20)


def stage_items(sizes: Sizes, device: torch.device) -> Iterator[Item]:
    """Return the measurements of a step of stages (a) and (c)."""
    networks = "WeakTr DeiT-S, CLIP ViT-B/32" if sizes.paper_networks else "tiny networks"
    for stage, letter in PAPER_STAGES.items():
        if letter == "b":  # cheap, on embeddings that are made once
            continue
        for precision in PRECISIONS:
            measure = partial(_step_of_largest_batch, stage, precision, sizes, device)
            yield Item(f"step of stage ({letter}), {networks}", precision, measure, needs=30)


def service_item(sizes: Sizes, device: torch.device) -> Item:
    """Return the measurement of the service beside the bare predictor, on 127.0.0.1, without a refiner."""
    what = f"service, {BUNDLE}, no refiner, {sizes.concurrency} requests at once"
    return Item(what, FLOAT32, partial(_service, sizes, device), needs=60)


def _new_predictor(name: str, precision: str, sizes: Sizes, device: torch.device) -> Predictor:
    return Predictor(PREDICTORS[name](device, sizes.image_size), precision=precision)


def _jpegs(count: int, sizes: Sizes) -> list[bytes]:
    width, height = sizes.photo
    return [synthetic_photo(number, width=width, height=height) for number in range(count)]


def _photos_per_second(predictor_of: Callable[[], Predictor], batch: int, refine: str | None, sizes: Sizes) -> Outcome:
    predictor = predictor_of()
    seconds, peak = _measured(_work(predictor, batch, refine, sizes), predictor.device, seconds=sizes.seconds)
    return Outcome(f"{batch / statistics.median(seconds):.1f} photos/s", peak)


def _work(predictor: Predictor, batch: int, refine: str | None, sizes: Sizes) -> Callable[[], object]:
    options = predictor.options(refine=refine)
    photos = [LabeledImage(read_image(each).pixels, [LABEL], options) for each in _jpegs(batch, sizes)]
    return partial(predictor.pseudo_masks, photos)


def _measured(work: Callable[[], object], device: torch.device, *, seconds: float) -> tuple[list[float], float]:
    """Repeat work, whose results are on the CPU, for so long; return the seconds of each time, and the peak in MiB."""
    work()
    times: list[float] = []
    with _PeakMemory(device) as memory:
        while sum(times) < seconds:
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
    return times, memory.mebibytes


class _PeakMemory:
    """The highest memory for tensors on a GPU in the block; on a CPU, what the process had beyond that at its start."""

    mebibytes = 0.0

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0.0

    def __enter__(self) -> _PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._before = forget_peak()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.mebibytes = torch.cuda.max_memory_allocated(self._device) / 2**20
        else:
            self.mebibytes = megabytes("VmHWM") - self._before


def _step_of_largest_batch(stage: str, precision: str, sizes: Sizes, device: torch.device) -> Outcome:
    """Measure a step of the first batch that fits into memory; MemoryError if none does."""
    for batch in sizes.stage_batches:
        step = _paper_step(stage, batch, device) if sizes.paper_networks else _tiny_step(stage, batch, device)
        try:
            with _PeakMemory(device) as memory:
                seconds = statistics.median(step_seconds(step, precision, device=device, seconds=sizes.seconds))
        except torch.OutOfMemoryError:
            continue
        return Outcome(f"{1000 * seconds:.0f} ms, batch {batch}", memory.mebibytes)
    raise MemoryError(f"expected memory for a step of {sizes.stage_batches[-1]} photos")


def _paper_step(stage: str, batch: int, device: torch.device) -> TrainingStep:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator, clip, prompts = paper_networks()
        given = random_batch(batch)
    networks = generator.to(device), clip.to(device), prompts.to(device)
    return generator_step(stage, *networks, given, names=PAPER_NAMES)


def _tiny_step(stage: str, batch: int, device: torch.device) -> TrainingStep:
    generator, clip = tiny_networks("weaktr", device)
    given = torch.rand(batch, 3, 64, 64), torch.eye(len(NAMES)).repeat(batch, 1)[:batch]
    return generator_step(stage, generator, clip, tiny_prompts(clip), given, names=NAMES)


def _service(sizes: Sizes, device: torch.device) -> Outcome:
    """Post photos to a service of its own, each a new job."""
    batch = default_batch_size(device.type)
    predictor = Predictor(demo_bundle(device, image_size=None))
    times, _ = _measured(_work(predictor, batch, "none", sizes), device, seconds=sizes.seconds)
    bare = batch / statistics.median(times)
    predictor.release_memory()
    photos = [LabeledPhoto(data, (LABEL,)) for data in _jpegs(8, sizes)]
    numbers = itertools.count()
    with (
        tempfile.TemporaryDirectory(prefix="semples-gpu-") as folder,
        service(Path(folder), Model(BUNDLE, "none", threads=0), device=str(device)) as port,
    ):
        post = partial(press, Target(port, PATH, {"refine": "none"}), photos, numbers=numbers)
        post(concurrency=min(WARM_UP, sizes.requests), bounds=Bounds(min(WARM_UP, sizes.requests), 60))
        load = post(concurrency=sizes.concurrency, bounds=Bounds(sizes.requests, 5 * sizes.seconds))
    if load.errors:
        return Outcome(f"{len(load.errors)} errors, such as {load.errors[0]}", failed=True)
    beside = f"{load.rate / bare:.2f} of the bare predictor's {bare:.1f} (batch {batch})"
    return Outcome(f"{load.rate:.1f} photos/s, {beside}")
