"""From a run's work directory to a bundle."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from models.build import KINDS, load_generator
from models.bundle.bundle import write_bundle
from models.bundle.manifest import (
    BundleInfo,
    ImageTowerSpec,
    Manifest,
    Measurement,
    NearNoun,
    TextTowerSpec,
)
from models.clip import FrozenClip, text_config, text_weights, vision_config
from models.config import Config, InferenceConfig
from models.prompts import nearest_nouns, read_nouns
from models.training.generator import initial_generator, learned_prompts, supervision
from models.training.run import Run
from models.training.segmenter import trained_segmenter

# Which generator a bundle can hold: the initial one, of stage (a), or of stage (c).
STAGES = ("zero-shot", "train-generator", "refine-generator")
_NOUNS = 8
Part = Literal["segmenter", "text_tower"]
_USUAL: tuple[Part, ...] = ("segmenter",)


def export_bundle(
    run: Run,
    folder: Path,
    *,
    stage: str,
    licence: str,
    trained_on: str,
    metrics: Sequence[Measurement] = (),
    parts: Collection[Part] = _USUAL,
) -> BundleInfo:
    """Write a bundle of what a run has trained so far.

    Args:
        run: with the stage's files in its work directory.
        folder: the bundle's.
        stage: one of STAGES; "zero-shot" is the generator before training.
        licence: under which others may use the weights.
        trained_on: the data, in words.
        metrics: measured figures that the bundle shall carry.
        parts: what to take along: the segmenter, if the run has one; CLIP's text tower, with which the bundle takes
            labels that it was not trained on.

    Raises:
        ValueError: if the stage is unknown or its files are missing; or a text tower is wanted and the generator is not
            on the frozen trunk of CLIP's image tower, or CLIP's tokenizer is not open_clip's own.
    """
    if stage not in STAGES:
        raise ValueError(f"expected a stage of {', '.join(STAGES)}, got {stage!r}")
    clip, class_text = supervision(run)
    settings = run.config.generator
    if stage == "zero-shot":
        generator = initial_generator(run, clip, class_text)
    else:
        weights = run.existing(stage, "generator.safetensors")
        generator = load_generator(run.config, clip, class_text, weights, device=run.device)
    texts = {"class_text": class_text}
    nouns: dict[str, tuple[NearNoun, ...]] = {}
    if (run.work / "learn-prompts" / "prompts.safetensors").is_file():
        learned = learned_prompts(run)
        texts |= {key: learned[key] for key in ("embeddings", "context")}
        nouns = explain(run, clip, learned["embeddings"])
    segmenter = trained_segmenter(run) if "segmenter" in parts else None
    text_tower = _text_tower_spec(run.config) if "text_tower" in parts else None
    manifest = Manifest(
        format=2,
        name=run.config.name,
        licence=licence,
        trained_on=trained_on,
        stage=stage,
        classes=run.classes.with_synonyms(run.config.synonyms),
        inference=run.config.inference,
        generator=KINDS[settings.kind].describe(
            settings, clip, {"mean": _channels(generator.mean), "std": _channels(generator.std)}
        ),
        image_tower=ImageTowerSpec(
            config=vision_config(run.config.clip.model, run.config.clip.pretrained),
            mean=_channels(clip.mean),
            std=_channels(clip.std),
        ),
        text_tower=text_tower,
        segmenter=segmenter[0] if segmenter else None,
        segment=run.config.segment if segmenter else None,
        metrics=tuple(metrics),
        nearest_nouns=nouns,
        files={},
    )
    return write_bundle(
        folder,
        manifest,
        generator=generator.state_dict(),
        texts=texts,
        image_tower=clip.visual.state_dict(),
        segmenter=segmenter[1] if segmenter else None,
        text_tower=text_weights(clip.model) if text_tower else None,
    )


def with_class_thresholds(run: Run, thresholds: Mapping[str, float]) -> Run:
    """Return the run with background thresholds of its own for some classes, by class name.

    Raises:
        ValueError: if a class is unknown or a threshold is not in (0, 1).
    """
    named = {run.classes.names[run.classes.channel(name)]: thresholds[name] for name in thresholds}
    inference = {**run.config.inference.model_dump(), "class_thresholds": named}
    config = run.config.model_copy(update={"inference": InferenceConfig.model_validate(inference)})
    return replace(run, config=config)


def explain(run: Run, clip: FrozenClip, prompts: Tensor) -> dict[str, tuple[NearNoun, ...]]:
    """Return the nouns nearest to each class's learned background prompt, nearest first, by class name."""
    nouns = read_nouns()
    near = nearest_nouns(prompts, nouns, clip.embed_classes(nouns), count=_NOUNS)
    return {
        name: tuple(NearNoun(noun, round(similarity, 4)) for noun, similarity in nouns_of)
        for name, nouns_of in zip(run.classes.names, near, strict=True)
    }


def _text_tower_spec(config: Config) -> TextTowerSpec:
    kind = config.generator.kind
    if kind != "zero_shot":
        raise ValueError(f"expected a zero_shot generator for an open vocabulary, got {kind}")
    return TextTowerSpec(config=text_config(config.clip.model, config.clip.pretrained))


def _channels(values: Tensor) -> tuple[float, float, float]:
    red, green, blue = values.flatten().tolist()
    return red, green, blue
