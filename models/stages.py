"""The three training stages, from files of a work directory to files of a work directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from models.build import (
    build_clip,
    build_generator,
    build_masks,
    build_prompts,
    class_captions,
    load_generator,
)
from models.clip import FrozenClip
from models.config import GeneratorStageConfig
from models.data.batches import Crops, ordered_batches
from models.data.sample import Sample
from models.data.transforms import light_augmentation
from models.generator_config import WeakTrConfig
from models.generator_fit import fit_generator, labeled, optimization_of
from models.generators import MaskGenerator
from models.run import OnStep, Run
from models.seeds import derive_seed
from models.tensors import read_tensors
from models.training.generator import Refinement, generator_losses, present_classes
from models.training.loop import Group, fit
from models.training.parts import weighted_parts
from models.training.prompts import (
    RegionBatches,
    RegionEmbeddings,
    embed_backgrounds,
    prompt_losses,
)

_EMBEDDING_BATCH = 32  # images at a time when regions are embedded once


def supervision(run: Run) -> tuple[FrozenClip, Tensor]:
    """Return the frozen CLIP and the class text embeddings, (K, D)."""
    clip = build_clip(run.config.clip, device=run.device)
    return clip, clip.embed_classes(class_captions(run.config, run.classes))


def learned_prompts(run: Run) -> dict[str, Tensor]:
    """Return what stage (b) left: embeddings (K, D) and context (K, M, width), on the run's device.

    Raises:
        MissingStageError: if it has not run.
    """
    path = run.existing("learn-prompts", "prompts.safetensors")
    return read_tensors(path, "embeddings", "context", device=run.device)


def initial_generator(run: Run, clip: FrozenClip, class_text: Tensor) -> MaskGenerator:
    """Return the mask generator as stages (a) and (c) start it: built, and pre-trained if the run is to do so.

    Raises:
        MissingStageError: if it is to be pre-trained and was not.
        ValueError: if it is a WeakTr with random weights, of which stages (a) and (c) teach only head and fusion.
    """
    settings = run.config.generator
    if run.config.pretrain_generator is None:
        if isinstance(settings, WeakTrConfig) and settings.weights is None:
            raise ValueError(
                "expected generator.weights from 'semples import-checkpoint', or a section pretrain_generator, for a "
                "weaktr; got neither, and from random weights its masks would mean nothing"
            )
        return build_generator(run.config, clip, class_text, device=run.device)
    weights = run.existing("pretrain-generator", "generator.safetensors")
    return load_generator(run.config, clip, class_text, weights, device=run.device)


def train_generator(run: Run, samples: Sequence[Sample], on_step: OnStep) -> Path:
    """Stage (a): fit the mask generator to L_match; returns its weights' file."""
    return _fit_generator(run, samples, on_step, stage="train-generator", prompts=None)


def refine_generator(run: Run, samples: Sequence[Sample], on_step: OnStep) -> Path:
    """Stage (c): fit the mask generator, from its initial weights, to L_match + L_refine; returns its weights' file.

    Raises:
        MissingStageError: if the prompts of stage (b) are not there.
    """
    prompts = learned_prompts(run)["embeddings"]
    return _fit_generator(run, samples, on_step, stage="refine-generator", prompts=prompts)


def learn_prompts(
    run: Run,
    samples: Sequence[Sample],
    on_step: OnStep,
    on_images: Callable[[int], None] = lambda _: None,
) -> Path:
    """Stage (b): fit the background prompts to L_prompt; returns their file.

    Before the first step the background regions of all views are embedded; on_images counts the images.

    Raises:
        MissingStageError: if the generator of stage (a) is not there.
    """
    settings = run.config.learn_prompts
    clip, class_text = supervision(run)
    weights = run.existing("train-generator", "generator.safetensors")
    regions = _background_regions(run, samples, clip, class_text, weights, on_images)
    prompts = build_prompts(run.config, clip, run.classes.names)
    batches = RegionBatches(
        len(regions.channels),
        views=settings.views,
        batch_size=settings.batch_size,
        seed=run.config.seed,
    )
    with run.logged("learn-prompts", on_step) as report:
        fit(
            [Group(prompts.parameters())],
            batches,
            prompt_losses(prompts, clip, regions, class_text, text_weight=settings.text_weight),
            optimization_of(run, settings),
            on_step=report,
            checkpoint=run.checkpoint("learn-prompts", prompts, samples),
        )
    return _save_prompts(run, clip, class_text, prompts.context.detach())


def adopt_prompts(run: Run, context: Tensor) -> Path:
    """In place of stage (b): take prompts that were learned elsewhere; returns their file.

    Args:
        run: whose CLIP must be the one that they were learned with.
        context: their parameters, (K, M, width).

    Raises:
        ValueError: if they are not of the run's classes, number of tokens and CLIP, or the run has prompts already.
    """
    path = run.work / "learn-prompts" / "prompts.safetensors"
    if path.is_file():
        raise ValueError(f"expected a run without prompts, got {path}; delete it to replace them")
    clip, class_text = supervision(run)
    expected = (len(run.classes), run.config.prompts.tokens, clip.prompt_width)
    if context.shape != expected:
        raise ValueError(
            f"expected prompts {expected} for these classes, prompts.tokens and {run.config.clip.model}, "
            f"got {tuple(context.shape)}"
        )
    return _save_prompts(run, clip, class_text, context.to(run.device))


def has_adopted_prompts(run: Run) -> bool:
    """Return whether the run's prompts were imported: stage (b) would have left a log."""
    folder = run.work / "learn-prompts"
    return (folder / "prompts.safetensors").is_file() and not (folder / "log.jsonl").is_file()


@torch.no_grad()
def _save_prompts(run: Run, clip: FrozenClip, class_text: Tensor, context: Tensor) -> Path:
    embeddings = clip.embed_prompts(context)
    tensors = {"context": context, "embeddings": embeddings, "class_text": class_text}
    return run.save("learn-prompts", "prompts.safetensors", tensors)


def _fit_generator(
    run: Run, samples: Sequence[Sample], on_step: OnStep, *, stage: str, prompts: Tensor | None
) -> Path:
    settings: GeneratorStageConfig = getattr(run.config, stage.replace("-", "_"))
    clip, class_text = supervision(run)
    generator = initial_generator(run, clip, class_text)
    generator.let_learn(settings.trainable)
    losses_of = generator_losses(
        build_masks(generator, clip, mask=settings.mask, epsilon=settings.epsilon),
        clip,
        class_text,
        background_weight=settings.background_weight,
        refinement=None if prompts is None else Refinement(prompts, settings.refinement_weight),
    )
    parts_of = weighted_parts(
        present_classes,
        size=settings.micro_batch_size,
        processes=run.processes,
        device=run.device,
    )
    return fit_generator(
        run, samples, on_step, generator, losses_of, stage=stage, parts_of=parts_of
    )


def _background_regions(
    run: Run,
    samples: Sequence[Sample],
    clip: FrozenClip,
    class_text: Tensor,
    weights: Path,
    on_images: Callable[[int], None],
) -> RegionEmbeddings:
    """Embed the background regions of several augmented views of every labeled photo."""
    settings = run.config.learn_prompts
    generator = load_generator(run.config, clip, class_text, weights, device=run.device)
    masks_of = build_masks(generator, clip, mask="minmax", epsilon=settings.epsilon)
    transform = light_augmentation(settings.crop_size, min_area=settings.crop_min_area)
    photos, seed = labeled(samples), run.config.seed
    crops = (
        Crops(photos, classes=len(run.classes), transform=transform, seed=derive_seed(seed, view))
        for view in range(settings.views)
    )
    views = (
        ordered_batches(each, batch_size=_EMBEDDING_BATCH, workers=run.workers) for each in crops
    )
    return embed_backgrounds(
        chain.from_iterable(views), masks_of, clip, device=run.device, on_images=on_images
    )
