"""``semples export-bundle``: a bundle from the results in a run's work directory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from models.build import GENERATOR_KINDS, load_generator
from models.bundle.bundle import write_bundle
from models.bundle.manifest import (
    BundleInfo,
    ImageTowerSpec,
    Manifest,
    Measurement,
    NearNoun,
    TextTowerSpec,
)
from models.clip import FrozenClip, text_weights
from models.config import Config, FeatureSegmenterSpec, InferenceConfig
from models.data.classes import ON_CLIP
from models.generators import MaskGenerator
from models.prompts import nearest_nouns, read_nouns
from models.training.generator import initial_generator
from models.training.prompts import has_prompts, learned_prompts
from models.training.run import FINAL_STAGE, GENERATOR_WEIGHTS, SEGMENTER_STAGE, Run, supervision
from models.training.segmenter import trained_segmenter

# Which generator a bundle holds: the initial one, of stage (a), or of stage (c).
STAGES = ("zero-shot", "train-generator", FINAL_STAGE)
BundlePart = Literal["segmenter", "text_tower"]

_DEFAULT_PARTS: tuple[BundlePart, ...] = ("segmenter",)
_NOUNS = 8


def export_bundle(
    run: Run,
    folder: Path,
    *,
    stage: str,
    licence: str,
    trained_on: str,
    metrics: Sequence[Measurement] = (),
    parts: Collection[BundlePart] = _DEFAULT_PARTS,
) -> BundleInfo:
    """Write a bundle of the results of a run's stage, one of STAGES; ``parts`` are included if the run has them.

    Raises:
        ValueError: if the stage is unknown or its files are missing; if the segmenter reads features that have changed
            since; or if the text tower is asked for and the generator is not on the frozen trunk of CLIP's image tower,
            or CLIP's tokenizer is not open_clip's own.
    """
    if stage not in STAGES:
        raise ValueError(f"expected a stage of {', '.join(STAGES)}, got {stage!r}")
    clip, class_text = supervision(run)
    generator = _generator(run, stage, clip, class_text)
    learned = learned_prompts(run) if has_prompts(run) else {}
    prompts: dict[str, Tensor] = {name: learned[name] for name in ("context", "embeddings") if name in learned}
    spec, segmenter = (trained_segmenter(run) if "segmenter" in parts else None) or (None, None)
    if isinstance(spec, FeatureSegmenterSpec) and stage != FINAL_STAGE:
        spec, segmenter = None, None  # it reads the features of the last stage's generator
    if isinstance(spec, FeatureSegmenterSpec) and not run.is_current(SEGMENTER_STAGE):
        raise ValueError("expected a segmenter trained on the features of this mask generator, got an earlier one's")
    manifest = Manifest(
        format=2,
        name=run.config.name,
        licence=licence,
        trained_on=trained_on,
        stage=stage,
        classes=run.classes.with_synonyms(run.config.synonyms),
        inference=run.config.inference,
        generator=GENERATOR_KINDS[run.config.generator.kind].describe(
            run.config.generator, clip, {"mean": _rgb(generator.mean), "std": _rgb(generator.std)}
        ),
        image_tower=ImageTowerSpec(
            config=clip.vision_config,
            mean=_rgb(clip.mean),
            std=_rgb(clip.std),
        ),
        text_tower=_text_tower_spec(run.config, clip) if "text_tower" in parts else None,
        segmenter=spec,
        segment=run.config.segment if spec else None,
        metrics=tuple(metrics),
        nearest_nouns=prompt_neighbors(run, clip, prompts["embeddings"]) if prompts else {},
        files={},
    )
    return write_bundle(
        folder,
        manifest,
        generator=generator.state_dict(),
        texts={**prompts, "class_text": class_text},
        image_tower=clip.visual.state_dict(),
        segmenter=segmenter,
        text_tower=text_weights(clip.model) if manifest.text_tower else None,
    )


def with_class_thresholds(run: Run, thresholds: Mapping[str, float]) -> Run:
    """Return the run with background thresholds by class name."""
    named = {run.classes.names[run.classes.channel(name)]: thresholds[name] for name in thresholds}
    inference = {**run.config.inference.model_dump(), "class_thresholds": named}
    config = run.config.model_copy(update={"inference": InferenceConfig.model_validate(inference)})
    return replace(run, config=config)


def prompt_neighbors(run: Run, clip: FrozenClip, prompts: Tensor) -> dict[str, tuple[NearNoun, ...]]:
    """Return the nouns nearest to each class's background prompt, (K, D), nearest first, by class name."""
    nouns = read_nouns()
    near = nearest_nouns(prompts, nouns, clip.embed_classes(nouns), count=_NOUNS)
    return {
        name: tuple(NearNoun(noun, round(similarity, 4)) for noun, similarity in nouns_of)
        for name, nouns_of in zip(run.classes.names, near, strict=True)
    }


def _generator(run: Run, stage: str, clip: FrozenClip, class_text: Tensor) -> MaskGenerator:
    if stage == "zero-shot":
        return initial_generator(run, clip, class_text)
    weights = run.existing(stage, GENERATOR_WEIGHTS)
    return load_generator(run.config, clip, class_text, weights, device=run.device)


def _text_tower_spec(config: Config, clip: FrozenClip) -> TextTowerSpec:
    kind = config.generator.kind
    if kind not in ON_CLIP:
        raise ValueError(f"expected a {' or '.join(ON_CLIP)} generator for an open vocabulary, got {kind}")
    return TextTowerSpec(config=clip.text_config)


def _rgb(values: Tensor) -> tuple[float, float, float]:
    red, green, blue = values.flatten().tolist()
    return red, green, blue
