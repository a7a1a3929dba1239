"""The three training stages, from files of a work directory to files of a work directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.build import (
    build_clip,
    build_generator,
    build_masks,
    build_prompts,
    build_transform,
    class_captions,
    load_generator,
)
from models.clip import FrozenClip
from models.config import GeneratorStageConfig, PretrainConfig, PromptStageConfig, WeakTrConfig
from models.data.classes import Sample
from models.data.loaders import (
    Batch,
    Crops,
    RandomBatches,
    derive_seed,
    light_augmentation,
    ordered_batches,
)
from models.generators import MaskGenerator
from models.inference.multi_scale import resize_images
from models.losses import (
    MasksOf,
    mask_images,
    present_pairs,
    segment_label_matching,
    semantic_refinement,
)
from models.tensors import read_tensors
from models.training.distributed import in_parallel
from models.training.loop import Group, Optimization, Part, fit, weighted_parts, whole
from models.training.prompts import (
    RegionBatches,
    RegionEmbeddings,
    embed_backgrounds,
    prompt_losses,
)
from models.training.run import OnStep, Run

# A mask generator that learns from labeled photos, whatever the losses: a stage of a run, kept and logged.


def fit_generator(
    run: Run,
    samples: Sequence[Sample],
    on_step: OnStep,
    generator: MaskGenerator,
    losses_of: Callable[[Batch], Mapping[str, Tensor]],
    *,
    stage: str,
    parts_of: Callable[[Batch], Sequence[Part[Batch]]] = whole,
) -> Path:
    """Let what is not frozen of the mask generator learn from the labeled photos; returns its weights' file.

    Args:
        run: whose section for the stage says how.
        samples: those without a label are left out.
        on_step: called after each step.
        generator: that learns.
        losses_of: batch → loss terms by name.
        stage: under which log, checkpoint and weights are kept.
        parts_of: cuts a batch into what memory can hold at a time.
    """
    settings: GeneratorStageConfig | PretrainConfig = getattr(run.config, stage.replace("-", "_"))
    with run.logged(stage, on_step) as report:
        fit(
            [Group(generator.parameters())],
            _photo_batches(run, samples, settings),
            in_parallel(losses_of, generator, run.processes, device=run.device),
            optimization_of(run, settings),
            on_step=report,
            checkpoint=run.checkpoint(stage, generator, samples),
            parts_of=parts_of,
        )
    return run.save(stage, "generator.safetensors", generator.state_dict())


def optimization_of(
    run: Run, settings: GeneratorStageConfig | PretrainConfig | PromptStageConfig
) -> Optimization:
    """Return how a stage's parameters learn."""
    return Optimization(
        settings.epochs,
        settings.learning_rate,
        settings.weight_decay,
        precision=settings.precision,
        seed=run.own_seed,
    )


def labeled(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples that have a label; the others have no region, so they teach nothing."""
    return [sample for sample in samples if sample.channels]


def _photo_batches(
    run: Run, samples: Sequence[Sample], settings: GeneratorStageConfig | PretrainConfig
) -> RandomBatches[Batch]:
    """Return random batches of the labeled photos, augmented as a stage has it."""
    photos, transform = labeled(samples), build_transform(settings)
    return run.batches(
        lambda seed: Crops(photos, classes=len(run.classes), transform=transform, seed=seed),
        len(photos),
        batch_size=settings.batch_size,
    )


# Stages (a) and (c): the mask generator learns from a frozen CLIP, in (c) with learned background prompts.


@dataclass(frozen=True)
class Refinement:
    """What stage (c) adds to stage (a).

    Attributes:
        prompts: embeddings of the learned background prompts, (K, D), L2-normalized.
        weight: w_r.
    """

    prompts: Tensor
    weight: float


def generator_losses(
    masks_of: MasksOf,
    clip: FrozenClip,
    class_text: Tensor,
    *,
    background_weight: float,
    refinement: Refinement | None = None,
) -> Callable[[Batch], Mapping[str, Tensor]]:
    """Return the losses of a batch: L_match, and L_refine too if there is a refinement.

    Args:
        masks_of: soft masks of the present classes, with gradient to the mask generator.
        clip: the frozen CLIP.
        class_text: class text embeddings, (K, D); embedded once, since nothing upstream of them learns.
        background_weight: w_b.
        refinement: the learned prompts; None is stage (a).
    """

    def losses_of(batch: Batch) -> Mapping[str, Tensor]:
        images, labels = (tensor.to(class_text.device) for tensor in batch)
        present = present_pairs(labels)
        seen = clip.normalize(resize_images(images, clip.input_size))
        regions = mask_images(seen, masks_of(images, present), present)
        # In single precision whatever the networks computed in: logarithms of cosines near 0 and 1 follow.
        # Both at once, since larger products are quicker.
        both = clip.embed_images(torch.cat([regions.foreground, regions.background])).float()
        foreground, background = both.tensor_split(2)
        channels = present[:, 1]
        losses = {
            "match": segment_label_matching(
                foreground, background, class_text[channels], background_weight=background_weight
            )
        }
        if refinement is not None:
            losses["refine"] = semantic_refinement(
                foreground, refinement.prompts[channels], refinement_weight=refinement.weight
            )
        return losses

    return losses_of


def present_classes(labels: Tensor) -> Tensor:
    """Return which (image, class) pairs are present, (B, K): what the losses are means over."""
    return labels > 0


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


# Before stage (a): the mask generator learns to tell image-level labels, which makes it a CAM network.

# images in [0, 1], (B, 3, H, W) → class evidence by name, (B, K) each; a network may have several readings
EvidenceOf = Callable[[Tensor], Mapping[str, Tensor]]


def classification_losses(
    evidence_of: EvidenceOf, *, device: torch.device
) -> Callable[[Batch], Mapping[str, Tensor]]:
    """Return the losses of a batch: the multi-label soft margin of each reading of the evidence.

    Args:
        evidence_of: with gradient to the mask generator.
        device: where the work is done.
    """

    def losses_of(batch: Batch) -> Mapping[str, Tensor]:
        images, labels = (tensor.to(device) for tensor in batch)
        return {
            name: F.multilabel_soft_margin_loss(evidence, labels)
            for name, evidence in evidence_of(images).items()
        }

    return losses_of


# The stage before (a): photos with labels in, a CAM network out, from which stages (a) and (c) start.

STAGE = "pretrain-generator"


def settings_of(run: Run) -> PretrainConfig:
    """Return how the run pre-trains.

    Raises:
        ValueError: if its configuration does not say.
    """
    if run.config.pretrain_generator is None:
        raise ValueError("expected a section pretrain_generator in the configuration, got none")
    return run.config.pretrain_generator


def pretrain_generator(run: Run, samples: Sequence[Sample], on_step: OnStep) -> Path:
    """Fit the mask generator to the image-level labels; returns its weights' file.

    Batch statistics learn here, and here only.

    Raises:
        ValueError: if the configuration has no such stage, or nothing is labeled.
    """
    settings_of(run)
    generator = build_generator(run.config, *supervision(run), device=run.device)
    generator.let_all_learn()
    losses_of = classification_losses(generator.evidence, device=run.device)
    return fit_generator(run, samples, on_step, generator, losses_of, stage=STAGE)
