"""What a ViT-B/16 costs as a mask generator: Grad-CAMs of one photo, and a step of stage (c); random weights.

The photo is of 500×375 on the grid of 32, with the affinity that the random walk refines by. "Plain" stores the
attention of all blocks and runs a backward pass through everything for each label. "CLIP-ES" differentiates the last
block alone, and runs it and its backward pass once a label, as the public code does. The step is of a batch of crops
with two labels each, its features computed, or read from the cache that ``views`` makes.

All sides take turns, each turn a process of its own (for its peak of memory) with a run of a small photo to warm up and
one that counts; seconds are the processor's, the median of the turns, memory is the highest.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.stage_speed import backward, forget_peak, megabytes
from models.build import build_masks
from models.clip import FrozenClip, load_clip
from models.clip_vit_options import ClipVitOptions
from models.generators.clip_blocks import embed_patches
from models.generators.clip_vit import BackgroundTexts, ClipVitGenerator
from models.training.feature_cache import FeatureCache
from models.training.generator import Refinement, generator_losses

PHOTO = (384, 512)
LABELS = (1, 3, 8)
SIDES = ("plain", "CLIP-ES", "ours")
BLOCKS = (6, 12)
STEPS = ("computed", "cached")
CROPS, CROP = 2, 224
MODEL = "ViT-B-16-quickgelu"

Work = Callable[[], object]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)  # one turn's own process
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only:
        side, labels, blocks = arguments.only
        take_turn(side, int(labels), int(blocks))
        return
    print("| labels | blocks |", *(f"{side} s |" for side in SIDES), "plain / ours | CLIP-ES / ours |", end=" ")
    print(*(f"{side} MiB |" for side in SIDES), "\n|" + "---|" * 10)
    for labels, blocks in [(LABELS[0], BLOCKS[0]), *((labels, BLOCKS[1]) for labels in LABELS)]:
        _print_row((labels, blocks), SIDES, arguments)
    print("\n| labels a crop | blocks |", *(f"{side} s |" for side in STEPS), "ratio |", end=" ")
    print(*(f"{side} MiB |" for side in STEPS), "\n|" + "---|" * 7)
    _print_row((2, BLOCKS[1]), STEPS, arguments)


def _print_row(of: tuple[int, int], names: Sequence[str], arguments: argparse.Namespace) -> None:
    turns = [[_in_process(name, of, arguments.threads) for name in names] for _ in range(arguments.turns)]
    found = [list(zip(*side, strict=True)) for side in zip(*turns, strict=True)]
    seconds, peaks = [statistics.median(side[0]) for side in found], [max(side[1]) for side in found]
    ratios = [each / seconds[-1] for each in seconds[:-1]]
    cells = [*map(str, of), *(f"{each:.2f}" for each in (*seconds, *ratios)), *(f"{each:.0f}" for each in peaks)]
    print("| " + " | ".join(cells) + " |", flush=True)


def _in_process(side: str, of: tuple[int, int], threads: int) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.clip_vit", f"--threads={threads}", "--only", side, *map(str, of)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


def take_turn(side: str, labels: int, blocks: int) -> None:
    """Print a run's processor seconds, and how many MiB it takes at most beyond those found."""
    torch.manual_seed(0)
    clip, generator = networks(labels)
    generator.backbone.transformer.resblocks = generator.backbone.transformer.resblocks[:blocks]
    if side in STEPS:
        # The first step fills the cache.
        warm_up = work = step(clip, generator, cached=side == "cached")
    else:
        warm_up, work = (sides(generator, torch.rand(1, 3, *size), labels)[side] for size in ((64, 64), PHOTO))
    warm_up()
    before = forget_peak()
    started = time.process_time()  # other programs on the machine matter less than to a clock
    work()
    print(time.process_time() - started, megabytes("VmHWM") - before)


def networks(classes: int) -> tuple[FrozenClip, ClipVitGenerator]:
    """Return a random ViT-B/16, and a mask generator on it, with random texts."""
    clip, options = load_clip(MODEL, None), ClipVitOptions()
    stuff = len(options.background_texts)
    texts = torch.randn(classes + stuff, clip.visual.output_dim)
    background = BackgroundTexts(texts[classes:], torch.zeros(classes, stuff, dtype=torch.bool))
    return clip, ClipVitGenerator(clip, texts[:classes], background=background, logit_scale=100, options=options)


def build(classes: int) -> ClipVitGenerator:
    """Return the mask generator of ``networks`` alone."""
    return networks(classes)[1]


def step(clip: FrozenClip, generator: ClipVitGenerator, *, cached: bool) -> Work:
    """Return a step of stage (c), for crops that show all of the generator's classes."""
    generator.let_learn("head")
    text = F.normalize(generator.head.weight.detach(), dim=1)
    cache = FeatureCache(generator, Path(tempfile.gettempdir()), CROPS)
    losses_of = generator_losses(
        build_masks(generator, clip, mask="minmax", epsilon=0.1, cams_of=cache.cams_of if cached else None),
        clip,
        text,
        background_weight=2.4,
        refinement=Refinement(text.flip(0), 0.05),
    )
    images, labels = torch.rand(CROPS, 3, CROP, CROP), torch.ones(CROPS, len(text))
    keys = torch.stack([torch.zeros(CROPS), torch.arange(CROPS)], dim=1).long()
    return lambda: backward(losses_of((images, labels, keys) if cached else (images, labels)))


def sides(generator: ClipVitGenerator, photo: Tensor, count: int) -> dict[str, Work]:
    """Return the three ways to the CAMs, (count, h, w), and the mean attention of the last blocks, (N, N)."""
    present = torch.tensor([(0, channel) for channel in range(count)])
    texts = torch.cat([generator.head.weight.detach(), generator.background_text])

    @torch.inference_mode()
    def ours() -> tuple[Tensor, Tensor]:
        features = generator.features(photo)
        return generator.chosen_cams(features, present), generator.affinity(features)[0].flatten(2).flatten(0, 1)

    def plain() -> tuple[Tensor, Tensor]:
        generator.backbone.requires_grad_(True)  # as a network that was loaded and put to use
        try:
            return plain_cams(generator, photo, texts, count)
        finally:
            generator.backbone.requires_grad_(False).zero_grad()

    return {
        "plain": plain,
        "CLIP-ES": lambda: clip_es_cams(generator, photo, texts, count),
        "ours": ours,
    }


def plain_cams(generator: ClipVitGenerator, image: Tensor, texts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Grad-CAMs of the first of some texts, one whole backward pass for each, and the mean attention."""
    visual = generator.backbone
    tokens, grid = embed_patches(visual, generator.normalize(image), mode="bilinear")
    maps = []
    for block in visual.transformer.resblocks:
        activations = block.ln_1(tokens).requires_grad_()
        tokens, attention = _run(block, tokens, activations)
        maps.append(attention)
    activations.retain_grad()
    probabilities = _probabilities(generator, tokens, texts)
    cams = []
    for number in range(count):
        activations.grad = None
        probabilities[number].backward(retain_graph=True)
        cams.append(_cam(activations))
    return torch.stack(cams).unflatten(1, grid), _mean(maps)


def clip_es_cams(generator: ClipVitGenerator, image: Tensor, texts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same with all blocks but the last without gradient, and the last one run and differentiated for each text."""
    visual, maps = generator.backbone, []
    *early, last = visual.transformer.resblocks
    with torch.no_grad():
        tokens, grid = embed_patches(visual, generator.normalize(image), mode="bilinear")
        for block in early:
            tokens, attention = _run(block, tokens, block.ln_1(tokens))
            maps.append(attention)
    cams = []
    for number in range(count):
        activations = last.ln_1(tokens).requires_grad_()
        output, attention = _run(last, tokens, activations)
        _probabilities(generator, output, texts)[number].backward()
        cams.append(_cam(activations))
    return torch.stack(cams).unflatten(1, grid), _mean([*maps, attention.detach()])


def _run(block: Any, tokens: Tensor, normalized: Tensor) -> tuple[Tensor, Tensor]:
    output, attention = block.attn(normalized, normalized, normalized, need_weights=True)
    tokens = tokens + output
    return tokens + block.mlp(block.ln_2(tokens)), attention


def _probabilities(generator: ClipVitGenerator, output: Tensor, texts: Tensor) -> Tensor:
    visual = generator.backbone
    embedding = visual.ln_post(output)[0, 1:].mean(dim=0) @ visual.proj
    cosines = F.normalize(embedding, dim=0) @ F.normalize(texts, dim=1).T
    return (generator.logit_scale * cosines).softmax(dim=0)


def _cam(activations: Tensor) -> Tensor:
    if activations.grad is None:
        raise RuntimeError("expected a backward pass before, got no gradient")
    weights = activations.grad[0, 1:].mean(dim=0)
    cam = (activations.detach()[0, 1:] @ weights).relu()
    return (cam - cam.min()) / (cam.max() - cam.min())


def _mean(maps: list[Tensor]) -> Tensor:
    return torch.stack(maps)[-8:].mean(dim=0)[0, 1:, 1:].detach()


if __name__ == "__main__":
    main()
