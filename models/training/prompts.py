"""Stage (b): background prompts are fitted to embeddings of background regions, L_prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.build import build_masks, build_prompts, load_generator
from models.clip import FrozenClip
from models.data.classes import Sample, labeled_samples
from models.data.loaders import (
    Batch,
    Crops,
    derive_seed,
    light_augmentation,
    ordered_batches,
    random_order,
)
from models.inference.multi_scale import resize_images
from models.losses import MasksOf, contrastive_prompt_learning, mask_images, present_pairs
from models.prompts import BackgroundPrompts
from models.tensors import read_tensors
from models.training.loop import LossesOf, ParameterGroup, fit
from models.training.run import GENERATOR_WEIGHTS, OnStep, Run, supervision

_STAGE, _PROMPTS = "learn-prompts", "prompts.safetensors"
_EMBEDDING_BATCH = 32  # images


@dataclass(frozen=True)
class RegionEmbeddings:
    """L2-normalized embeddings of all background regions of a data set, (N, D), and their class channels, (N,).

    Row i of ``foreground``, (n, D) with n ≤ N, is of the same photo and class as row i of ``background``; n is 0 unless
    the foreground was asked for.
    """

    background: Tensor
    channels: Tensor
    foreground: Tensor


def learn_prompts(
    run: Run,
    samples: Sequence[Sample],
    on_step: OnStep,
    on_images: Callable[[int], None] = lambda _: None,
) -> Path:
    """Stage (b): fit the background prompts to L_prompt; returns their file.

    Before the first step the background regions of all views are embedded; ``on_images`` receives the number of images
    of each batch. If stage (c) asks for ``prompt_margins``, the foreground of the first view is embedded, too, and the
    file has the margins.
    """
    settings = run.config.learn_prompts
    clip, class_text = supervision(run)
    weights = run.existing("train-generator", GENERATOR_WEIGHTS)
    regions = _embed_views(run, samples, clip, class_text, weights, on_images)
    prompts = build_prompts(run.config, clip, run.classes.names)
    batches = RegionBatches(
        len(regions.channels),
        views=settings.views,
        batch_size=settings.batch_size,
        seed=run.config.seed,
    )
    with run.logged(_STAGE, on_step) as report:
        fit(
            [ParameterGroup(prompts.parameters())],
            batches,
            prompt_losses(prompts, clip, regions, class_text, text_weight=settings.text_weight),
            run.optimization(settings),
            on_step=report,
            checkpoint=run.checkpoint(_STAGE, prompts, samples),
        )
    learned = _embedded(clip, class_text, prompts.context.detach())
    if run.config.refine_generator.full_share_margin:
        learned["margins"] = prompt_margins(learned["embeddings"], regions)
    return run.save(_STAGE, _PROMPTS, learned)


def adopt_prompts(run: Run, context: Tensor) -> Path:
    """Save prompts that were learned elsewhere, (K, M, width), as the result of stage (b); returns their file."""
    if has_prompts(run):
        path = run.work / _STAGE / _PROMPTS
        raise ValueError(f"expected a run without prompts, got {path}; delete it to replace them")
    if margin := run.config.refine_generator.full_share_margin:
        raise ValueError(
            "expected refine_generator.full_share_margin 0 for imported prompts, of which no margins are known, "
            f"got {margin}"
        )
    clip, class_text = supervision(run)
    expected = (len(run.classes), run.config.prompts.tokens, clip.prompt_width)
    if context.shape != expected:
        raise ValueError(
            f"expected prompts {expected} for these classes, prompts.tokens and {run.config.clip.model}, "
            f"got {tuple(context.shape)}"
        )
    return run.save(_STAGE, _PROMPTS, _embedded(clip, class_text, context.to(run.device)))


def has_prompts(run: Run) -> bool:
    """Return whether the run has background prompts, learned or imported."""
    return (run.work / _STAGE / _PROMPTS).is_file()


def has_adopted_prompts(run: Run) -> bool:
    """Return whether the run's prompts were imported: stage (b) would have written a log."""
    return has_prompts(run) and not (run.work / _STAGE / "log.jsonl").is_file()


def learned_prompts(run: Run) -> dict[str, Tensor]:
    """Return the prompts' embeddings, (K, D), context, (K, M, width), and maybe margins, (K,), on the run's device."""
    path = run.existing(_STAGE, _PROMPTS)
    return read_tensors(path, "embeddings", "context", device=run.device)


@torch.no_grad()
def embed_regions(
    batches: Iterable[Batch],
    masks_of: MasksOf,
    clip: FrozenClip,
    *,
    device: torch.device,
    foregrounds: bool = False,
    on_images: Callable[[int], None] = lambda _: None,
) -> RegionEmbeddings:
    """Embed the background region of every (image, present class) pair of the batches; on request the foreground, too.

    They are constants in stage (b), where only the prompts learn: each epoch is a few matrix products.
    """
    backgrounds, fronts, channels = [], [], []
    for images, labels in batches:
        present = present_pairs(labels.to(device))
        on_device = images.to(device)
        seen = clip.normalize(resize_images(on_device, clip.input_size))
        regions = mask_images(seen, masks_of(on_device, present), present)
        backgrounds.append(clip.embed_images(regions.background).float())
        if foregrounds:
            fronts.append(clip.embed_images(regions.foreground).float())
        channels.append(present[:, 1])
        on_images(len(images))
    if not sum(len(each) for each in channels):
        raise ValueError("expected at least one labeled image, got none")
    background = torch.cat(backgrounds)
    return RegionEmbeddings(background, torch.cat(channels), torch.cat([background[:0], *fronts]))


def prompt_margins(prompts: Tensor, regions: RegionEmbeddings) -> Tensor:
    """Return how much nearer each prompt, (K, D), is to its class's background than to its foreground, (K,).

    The mean difference of the two cosines over the regions whose foreground is embedded; 0 for a class without any.
    """
    channels = regions.channels[: len(regions.foreground)]
    nearer = ((regions.background[: len(channels)] - regions.foreground) * prompts[channels]).sum(dim=1)
    zeros = torch.zeros(len(prompts), device=prompts.device)
    counts = zeros.index_add(0, channels, torch.ones_like(nearer))
    return zeros.index_add(0, channels, nearer) / counts.clamp(min=1)


class RegionBatches:
    """Random batches of region indices; an epoch has each region of one view once, but for an incomplete last batch.

    The ``count`` regions are ordered by view, with the same regions in each view; each epoch uses the next view.
    """

    def __init__(self, count: int, *, views: int = 1, batch_size: int, seed: int) -> None:
        self.count = count // views
        self.views = views
        self.batch_size = min(batch_size, self.count)
        self.seed = seed

    def __len__(self) -> int:
        return self.count // self.batch_size

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Tensor]:
        """Iterate over an epoch's batches, without the first ``skip``."""
        order = torch.tensor(random_order(self.count, derive_seed(self.seed, number)))
        rows = order + number % self.views * self.count
        for batch in range(skip, len(self)):
            yield rows[batch * self.batch_size : (batch + 1) * self.batch_size]


def prompt_losses(
    prompts: BackgroundPrompts,
    clip: FrozenClip,
    regions: RegionEmbeddings,
    class_text: Tensor,
    *,
    text_weight: float,
) -> LossesOf[Tensor]:
    """Return the loss of a batch of region indices: L_prompt, where ``text_weight`` is w_t."""

    def losses_of(batch: Tensor) -> Mapping[str, Tensor]:
        rows = batch.to(regions.channels.device)
        # Only the prompts of classes in the batch are embedded, each once.
        channels, back = torch.unique(regions.channels[rows], return_inverse=True)
        embedded = clip.embed_prompts(prompts.context[channels]).float()[back]
        loss = contrastive_prompt_learning(
            regions.background[rows],
            embedded,
            class_text[regions.channels[rows]],
            text_weight=text_weight,
        )
        return {"prompt": loss}

    return losses_of


def _embed_views(
    run: Run,
    samples: Sequence[Sample],
    clip: FrozenClip,
    class_text: Tensor,
    weights: Path,
    on_images: Callable[[int], None],
) -> RegionEmbeddings:
    """Embed the background regions of all augmented views of the labeled photos."""
    settings = run.config.learn_prompts
    generator = load_generator(run.config, clip, class_text, weights, device=run.device)
    masks_of = build_masks(generator, clip, mask="minmax", epsilon=settings.epsilon)
    transform = light_augmentation(settings.crop_size, min_area=settings.crop_min_area)
    photos, seed = labeled_samples(samples), run.config.seed
    measures_margins = run.config.refine_generator.full_share_margin > 0

    def embed(view: int) -> RegionEmbeddings:
        crops = Crops(photos, classes=len(run.classes), transform=transform, seed=derive_seed(seed, view))
        batches = ordered_batches(crops, batch_size=_EMBEDDING_BATCH, workers=run.workers)
        foregrounds = measures_margins and view == 0
        return embed_regions(batches, masks_of, clip, device=run.device, foregrounds=foregrounds, on_images=on_images)

    views = [embed(view) for view in range(settings.views)]
    return RegionEmbeddings(
        torch.cat([each.background for each in views]),
        torch.cat([each.channels for each in views]),
        views[0].foreground,
    )


@torch.no_grad()
def _embedded(clip: FrozenClip, class_text: Tensor, context: Tensor) -> dict[str, Tensor]:
    return {"context": context, "embeddings": clip.embed_prompts(context), "class_text": class_text}
