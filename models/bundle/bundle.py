"""Bundles: one folder with everything that serving loads, as YAML and safetensors; nothing in it is executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor, equal
from torch.nn.functional import normalize

from models.build import GENERATOR_KINDS
from models.bundle.manifest import (
    GENERATOR_FILE,
    MANIFEST,
    PROMPTS_FILE,
    SEGMENTER_FILE,
    TEXT_TOWER_FILE,
    TOWER_FILE,
    BundleError,
    BundleInfo,
    Manifest,
    check_hashes,
    read_info,
)
from models.bundle.towers import check_trunk, generator_key, load_image_tower, load_text_tower
from models.clip import FrozenImageTower, FrozenTextTower
from models.config import EncoderDecoderSpec, FeatureSegmenterSpec, Mask2FormerSpec
from models.generators import MaskGenerator
from models.io import hash_file
from models.segmenters import Segmenter
from models.segmenters.encoder_decoder import build_encoder_decoder
from models.segmenters.mask2former import build_mask2former
from models.segmenters.on_features import build_feature_segmenter
from models.tensors import read_single, write_tensors


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle; all networks are frozen and in evaluation mode.

    ``class_text`` and ``prompts`` are embeddings, (K, D), L2-normalized; ``context`` are the background prompts'
    parameters, (K, M, width). Prompts and context are None without stage (b). With a text tower, for an open
    vocabulary, the generator's backbone is the trunk of CLIP's image tower.
    """

    info: BundleInfo
    generator: MaskGenerator
    class_text: Tensor
    prompts: Tensor | None
    context: Tensor | None
    image_tower: FrozenImageTower | None
    segmenter: Segmenter | None = None
    text_tower: FrozenTextTower | None = None


def load_bundle(folder: Path, *, device: torch.device) -> Bundle:
    """Load a bundle after comparing the hash of each file with the manifest.

    Raises:
        BundleError: if a file is missing, changed or does not fit the manifest.
    """
    info = read_info(folder)
    check_hashes(info, folder)
    try:
        generator = GENERATOR_KINDS[info.generator.kind].rebuild(info.generator, len(info.classes))
        weights = read_single(folder / GENERATOR_FILE)
        generator.load_state_dict(weights)
        image_tower = load_image_tower(info, folder, weights)
        text_tower = load_text_tower(info, folder)
        segmenter = _load_segmenter(info, folder, generator)
        texts = read_single(folder / PROMPTS_FILE, "class_text", device=device)
        if len(texts["class_text"]) != len(info.classes):
            raise ValueError(f"{len(texts['class_text'])} class texts for {len(info.classes)} classes")
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise BundleError(f"expected weights that fit {folder / MANIFEST}, got {error}") from error
    # Embeddings are stored in half precision, in which their length is not quite 1.
    unit = {key: normalize(texts[key], dim=-1) for key in texts if key != "context"}
    return Bundle(
        info=info,
        generator=generator.to(device).eval().requires_grad_(False),
        class_text=unit["class_text"],
        prompts=unit.get("embeddings"),
        context=texts.get("context"),
        image_tower=image_tower and image_tower.to(device),
        segmenter=segmenter and segmenter.to(device),
        text_tower=text_tower and text_tower.to(device),
    )


def write_bundle(
    folder: Path,
    manifest: Manifest,
    *,
    generator: Mapping[str, Tensor],
    texts: Mapping[str, Tensor],
    image_tower: Mapping[str, Tensor] | None,
    segmenter: Mapping[str, Tensor] | None = None,
    text_tower: Mapping[str, Tensor] | None = None,
) -> BundleInfo:
    """Write state dicts as a bundle in half precision (vectors stay in single), and return its info.

    Tensors that the image tower and the generator's backbone have in common are stored once. The files of the manifest
    are filled in here. ``texts`` are "class_text" (K, D), and with learned prompts "embeddings" (K, D) and "context"
    (K, M, width). Without the image tower the bundle gives no alignment scores.
    """
    parts = {GENERATOR_FILE: _to_half(generator), PROMPTS_FILE: _to_half(texts)}
    if image_tower is not None:
        parts[TOWER_FILE] = _without_shared(_to_half(image_tower), parts[GENERATOR_FILE])
    optional = {SEGMENTER_FILE: segmenter, TEXT_TOWER_FILE: text_tower}
    parts |= {name: _to_half(part) for name, part in optional.items() if part is not None}
    if text_tower is not None:
        check_trunk(parts[TOWER_FILE])
    folder.mkdir(parents=True, exist_ok=True)
    for name in optional.keys() - parts.keys():
        (folder / name).unlink(missing_ok=True)  # of an earlier bundle
    for name, tensors in parts.items():
        write_tensors(folder / name, tensors)
    hashes = {name: hash_file(folder / name) for name in parts}
    content = manifest.model_copy(update={"files": hashes}).model_dump(mode="json")
    (folder / MANIFEST).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return read_info(folder)


def _load_segmenter(info: BundleInfo, folder: Path, generator: MaskGenerator) -> Segmenter | None:
    spec, classes = info.segmenter, len(info.classes)
    segmenter: Segmenter
    match spec:
        case None:
            return None
        case Mask2FormerSpec():
            segmenter = build_mask2former(spec.architecture, classes=classes)
        case FeatureSegmenterSpec():
            segmenter = build_feature_segmenter(generator, classes=classes, width=spec.width)
        case EncoderDecoderSpec():
            segmenter = build_encoder_decoder(
                spec.decoder, spec.backbone, classes=classes, normalization=(spec.mean, spec.std)
            )
    segmenter.load_state_dict(read_single(folder / SEGMENTER_FILE))
    return segmenter.eval().requires_grad_(False)


def _without_shared(tower: Mapping[str, Tensor], generator: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower's tensors that the generator's backbone does not have."""
    return {
        key: value
        for key, value in tower.items()
        if (other := generator.get(generator_key(key))) is None or not equal(value, other)
    }


def _to_half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Vectors (biases, batch statistics) are small, and some exceed half precision's range.
    return {
        key: (value.half() if value.ndim > 1 and value.is_floating_point() else value).detach().cpu()
        for key, value in tensors.items()
    }
