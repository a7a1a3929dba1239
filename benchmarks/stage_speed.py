"""Each stage's step, and CAMs of one photo, against the plain formulation: seconds and peak memory.

The paper's networks with random weights (WeakTr DeiT-S, ViT-B/32), random photos, 20 classes, two of them present. Both
sides of a ratio take turns, each turn a process of its own (for its peak of memory) with a step to warm up and one that
counts; seconds are the median of the turns, memory is the highest.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.plain_stages import (
    BACKGROUND_WEIGHT,
    EPSILON,
    REFINEMENT_WEIGHT,
    TEXT_WEIGHT,
    PlainStages,
)
from models.build import build_masks
from models.clip import FrozenClip, load_clip
from models.data.loaders import Batch
from models.generators import MaskGenerator
from models.generators.weaktr import WeakTrGenerator
from models.inference.multi_scale import multi_scale_cams
from models.prompts import BackgroundPrompts
from models.training.generator import Refinement, generator_losses
from models.training.loop import LossesOf
from models.training.prompts import RegionEmbeddings, embed_regions, prompt_losses
from models.weaktr_sizes import WeakTrSizes

NAMES = tuple(f"thing number {number}" for number in range(20))
PRESENT = 2  # classes a photo
SCALES = (1.0, 1.2)
PHOTO = (384, 512)  # 500 x 375 on the grid of 32
WHAT = {
    "a": "(a) step",
    "c": "(c) step",
    "b": "(b) epoch",
    "embed": "(b) once: embed the backgrounds of a view",
    "cam": "CAMs, 1.0 and 1.2 with flip",
}

Work = Callable[[], object]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt-batch", type=int, default=128, help="photos of an epoch in (b)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)  # one turn's own process
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only:
        take_turn(*arguments.only, batch=arguments.batch)
        return
    print("| what | plain s | ours s | ratio | plain MB | ours MB |\n|---|---|---|---|---|---|")
    for stage, title in WHAT.items():
        # The paper's batch, for an epoch's cost in (b) hangs on how many photos share its prompts.
        batch = arguments.prompt_batch if stage in ("b", "embed") else arguments.batch
        # What is embedded once, the plain formulation does in each epoch.
        sides = ("ours",) if stage == "embed" else ("plain", "ours")
        options = [f"--batch={batch}", f"--threads={arguments.threads}", "--only", stage]
        turns = [[_in_process([*options, side]) for side in sides] for _ in range(arguments.turns)]
        print(_row(title, [_summary(list(side)) for side in zip(*turns, strict=True)]), flush=True)


def _in_process(options: list[str]) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.stage_speed", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


def _summary(turns: list[tuple[float, float]]) -> tuple[float, float]:
    seconds, peaks = zip(*turns, strict=True)
    return statistics.median(seconds), max(peaks)


def _row(title: str, sides: list[tuple[float, float]]) -> str:
    ours, ours_peak = sides[-1]
    if len(sides) == 1:
        return f"| {title} | | {ours:.3f} | | | {ours_peak:.0f} |"
    plain, plain_peak = sides[0]
    return f"| {title} | {plain:.3f} | {ours:.3f} | {plain / ours:.1f} | {plain_peak:.0f} | {ours_peak:.0f} |"


def take_turn(stage: str, side: str, *, batch: int) -> None:
    """Print the seconds of a stage's step, and how many MB it takes at most beyond those that it found."""
    torch.manual_seed(0)
    work = build(stage, side, batch)
    before = forget_peak()
    work()
    started = time.perf_counter()
    work()
    print(time.perf_counter() - started, megabytes("VmHWM") - before)


def build(stage: str, side: str, batch: int) -> Work:
    """Return one step of a stage (an epoch of the batch's photos for (b)), formulated one way or the other."""
    generator, clip, prompts = paper_networks()
    images, labels = random_batch(batch)
    if stage == "cam":
        photo, channels = torch.rand(1, 3, *PHOTO), torch.arange(PRESENT)
        present = torch.stack([torch.zeros_like(channels), channels], dim=1)
        plain = PlainStages(generator, clip, NAMES)
        if side == "plain":
            return torch.no_grad()(lambda: plain.cams(photo, channels, scales=SCALES))
        return torch.inference_mode()(
            lambda: multi_scale_cams(generator.cams_of, photo, present, scales=SCALES, flip=True)
        )
    if side == "plain":
        plain = PlainStages(generator, clip, NAMES)
        if stage == "b":
            return lambda: plain.prompt_step(images, labels, prompts)
        return lambda: plain.generator_step(images, labels, prompts if stage == "c" else None)
    return ours(stage, generator, clip, prompts, (images, labels))


def paper_networks() -> tuple[WeakTrGenerator, FrozenClip, BackgroundPrompts]:
    """Return a mask generator, a CLIP and background prompts of the paper's sizes with random weights, on the CPU."""
    generator = WeakTrGenerator(WeakTrSizes(), classes=len(NAMES)).eval()
    clip = load_clip("ViT-B-32", None)
    prompts = BackgroundPrompts(len(NAMES), 30, clip.prompt_width, initialization="normal", generator=torch.Generator())
    return generator, clip, prompts


def random_batch(batch: int, *, side: int = 224) -> Batch:
    """Return random images, (B, 3, side, side), and labels, (B, K), of which ``PRESENT`` an image are set."""
    labels = torch.zeros(batch, len(NAMES))
    labels.scatter_(1, torch.rand(batch, len(NAMES)).topk(PRESENT).indices, 1.0)
    return torch.rand(batch, 3, side, side), labels


def ours(stage: str, generator: MaskGenerator, clip: FrozenClip, prompts: BackgroundPrompts, batch: Batch) -> Work:
    """Return the library's own step; what it does once a stage is done here, before it is timed."""
    generator.let_learn("head")
    if stage == "embed":
        return lambda: embed(generator, clip, batch)
    losses_of, given = our_losses(stage, generator, clip, prompts, batch, names=NAMES)
    return lambda: backward(losses_of(given))


def our_losses(
    stage: str,
    generator: MaskGenerator,
    clip: FrozenClip,
    prompts: BackgroundPrompts,
    batch: Batch,
    *,
    names: Sequence[str],
) -> tuple[LossesOf[Any], Any]:
    """Return the library's losses in stage "a", "b" or "c", and the batch that they take.

    The networks are on one device, on which (b) embeds its regions here; the batch may be on the CPU.
    """
    text = clip.embed_classes(names)
    if stage == "b":
        regions = embed(generator, clip, batch)
        rows = torch.arange(len(regions.channels))
        return prompt_losses(prompts, clip, regions, text, text_weight=TEXT_WEIGHT), rows
    refinement = None
    if stage == "c":
        with torch.no_grad():
            refinement = Refinement(clip.embed_prompts(prompts.context), REFINEMENT_WEIGHT)
    masks_of = build_masks(generator, clip, mask="minmax", epsilon=EPSILON)
    losses_of = generator_losses(masks_of, clip, text, background_weight=BACKGROUND_WEIGHT, refinement=refinement)
    return losses_of, batch


def embed(generator: MaskGenerator, clip: FrozenClip, batch: Batch) -> RegionEmbeddings:
    """Embed the background regions of a batch, as stage (b) does once."""
    views = list(zip(*(torch.split(each, 32) for each in batch), strict=True))
    masks_of = build_masks(generator, clip, mask="minmax", epsilon=EPSILON)
    return embed_regions(views, masks_of, clip, device=clip.mean.device)


def backward(losses: Mapping[str, torch.Tensor]) -> None:
    """Run the backward pass of a loss's terms."""
    torch.stack([*losses.values()]).sum().backward()


def forget_peak() -> float:
    """Forget this process's highest memory up to now, so that ``VmHWM`` starts anew; return the present MiB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return megabytes("VmRSS")


def megabytes(field: str) -> float:
    """Return a memory field of this process's status in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
