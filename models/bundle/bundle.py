"""Bundles: one folder with everything that serving loads. YAML and safetensors, nothing that executes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor, equal

from models.build import KINDS
from models.bundle.manifest import (
    GENERATOR_FILE,
    MANIFEST,
    PROMPTS_FILE,
    SEGMENTER_FILE,
    TEXT_TOWER_FILE,
    TOWER_FILE,
    BundleError,
    BundleInfo,
    ImageTowerSpec,
    Manifest,
    TextTowerSpec,
    find_bundle,
    read_info,
)
from models.clip import FrozenImageTower, FrozenTextTower, build_image_tower, build_text_tower
from models.config import SegmenterSpec
from models.generators import MaskGenerator
from models.segmenters import Segmenter
from models.segmenters.encoder_decoder import build_encoder_decoder
from models.segmenters.mask2former import build_mask2former
from models.tensors import read_tensors, write_tensors

# CLIP's towers in a bundle: what its image tower shares with the generator's backbone is stored once.

_TRUNK = "trunk."


def unshared(tower: Mapping[str, Tensor], generator: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the image tower's tensors that the generator's backbone does not have as well."""
    return {
        key: value
        for key, value in tower.items()
        if (other := generator.get(_counterpart(key))) is None or not equal(value, other)
    }


def check_trunk(stored: Mapping[str, Tensor]) -> None:
    """Refuse a text tower whose texts would mean nothing to the generator's backbone.

    Args:
        stored: what ``unshared`` left of the image tower.

    Raises:
        ValueError: if the backbone is not the image tower's trunk.
    """
    if any(key.startswith(_TRUNK) for key in stored):
        raise ValueError(
            "expected a mask generator on the frozen trunk of CLIP's image tower beside a text tower, got another"
        )


def load_image_tower(
    spec: ImageTowerSpec, stored: Mapping[str, Tensor], generator: Mapping[str, Tensor]
) -> FrozenImageTower:
    """Build CLIP's image tower from what is stored of it and from the generator's state dict.

    Raises:
        KeyError, RuntimeError: if the weights do not fit.
    """
    tower = build_image_tower(spec.config, mean=spec.mean, std=spec.std)
    missing = {key: _counterpart(key) for key in tower.visual.state_dict() if key not in stored}
    tower.visual.load_state_dict(
        {**stored, **{key: generator[other] for key, other in missing.items()}}
    )
    return tower


def load_text_tower(spec: TextTowerSpec, stored: Mapping[str, Tensor]) -> FrozenTextTower:
    """Build CLIP's text tower from what is stored of it.

    Raises:
        RuntimeError, ValueError: if the weights do not fit, or the tower is not causal.
    """
    tower = build_text_tower(spec.config)
    tower.text.load_state_dict(stored)
    return tower


def _counterpart(tower_key: str) -> str:
    """The generator's name of a tensor of the image tower's timm trunk."""
    return "backbone." + tower_key.removeprefix(_TRUNK)


__all__ = [
    "Bundle",
    "BundleError",
    "BundleInfo",
    "find_bundle",
    "load_bundle",
    "read_info",
    "write_bundle",
]


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes:
        info: what it says of itself.
        generator: the mask generator, in evaluation mode.
        class_text: class text embeddings, (K, D), L2-normalized.
        prompts: embeddings of the learned background prompts, (K, D), L2-normalized; None without stage (b).
        context: their parameters, (K, M, width); None without stage (b).
        image_tower: CLIP's, to score alignment; None if the bundle has none.
        segmenter: the segmentation network, in evaluation mode; None if the bundle has none.
        text_tower: CLIP's, for labels that the bundle was not trained on; None if it has none. Where there is one, the
            generator's backbone is the image tower's trunk.
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
    """Load a bundle; every file's hash is checked first.

    Raises:
        BundleError: if a file is missing, changed or does not fit the manifest.
    """
    info = read_info(folder)
    for name, expected in info.files.items():
        _check_hash(folder / name, expected)
    try:
        generator = KINDS[info.generator.kind].rebuild(info.generator, len(info.classes))
        weights = _load(folder / GENERATOR_FILE)
        generator.load_state_dict(weights)
        tower, text_tower = _load_towers(info, folder, weights)
        segmenter = _load_segmenter(info, folder)
        texts = _load(folder / PROMPTS_FILE, "class_text", device=device)
        if len(texts["class_text"]) != len(info.classes):
            raise ValueError(
                f"{len(texts['class_text'])} class texts for {len(info.classes)} classes"
            )
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise BundleError(f"expected weights that fit {folder / MANIFEST}, got {error}") from error
    # Half precision is how embeddings are stored; their unit length comes back here.
    unit = {
        key: torch.nn.functional.normalize(texts[key], dim=-1) for key in texts if key != "context"
    }
    return Bundle(
        info=info,
        generator=generator.to(device).eval().requires_grad_(False),
        class_text=unit["class_text"],
        prompts=unit.get("embeddings"),
        context=texts.get("context"),
        image_tower=tower.to(device) if tower is not None else None,
        segmenter=segmenter.to(device) if segmenter is not None else None,
        text_tower=text_tower.to(device) if text_tower is not None else None,
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
    """Write a bundle in half precision (vectors stay in single), and return its info.

    What the image tower has in common with the generator's backbone is stored once.

    Args:
        folder: made if missing; files of an earlier bundle are overwritten.
        manifest: its ``files`` are filled in here.
        generator: the generator's state dict.
        texts: "class_text" (K, D), and "embeddings" (K, D) and "context" (K, M, width) if prompts were learned.
        image_tower: the tower's state dict; None leaves alignment out.
        segmenter: the segmenter's state dict, if the manifest has one.
        text_tower: CLIP's text tower's state dict, if the manifest has one.

    Raises:
        ValueError: if there is a text tower and the generator's backbone is not the image tower's trunk.
        OSError: if the folder cannot be written.
    """
    parts = {GENERATOR_FILE: _halved(generator), PROMPTS_FILE: _halved(texts)}
    if image_tower is not None:
        parts[TOWER_FILE] = unshared(_halved(image_tower), parts[GENERATOR_FILE])
    optional = {SEGMENTER_FILE: segmenter, TEXT_TOWER_FILE: text_tower}
    parts |= {name: _halved(part) for name, part in optional.items() if part is not None}
    if text_tower is not None:
        check_trunk(parts[TOWER_FILE])
    folder.mkdir(parents=True, exist_ok=True)
    for name in optional.keys() - parts.keys():
        (folder / name).unlink(missing_ok=True)  # an earlier bundle's
    for name, tensors in parts.items():
        write_tensors(folder / name, tensors)
    hashes = {name: _hash(folder / name) for name in parts}
    content = manifest.model_copy(update={"files": hashes}).model_dump(mode="json")
    (folder / MANIFEST).write_text(
        yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    return read_info(folder)


def _load_towers(
    info: BundleInfo, folder: Path, generator: Mapping[str, Tensor]
) -> tuple[FrozenImageTower | None, FrozenTextTower | None]:
    if info.image_tower is None:
        return None, None
    stored = _load(folder / TOWER_FILE)
    tower = load_image_tower(info.image_tower, stored, generator)
    if info.text_tower is None:
        return tower, None
    check_trunk(stored)
    return tower, load_text_tower(info.text_tower, _load(folder / TEXT_TOWER_FILE))


def _build_segmenter(spec: SegmenterSpec, *, classes: int) -> Segmenter:
    if spec.kind == "mask2former":
        return build_mask2former(spec.architecture, classes=classes)
    return build_encoder_decoder(
        spec.decoder, spec.backbone, classes=classes, normalization=(spec.mean, spec.std)
    )


def _load_segmenter(info: BundleInfo, folder: Path) -> Segmenter | None:
    if info.segmenter is None:
        return None
    segmenter = _build_segmenter(info.segmenter, classes=len(info.classes))
    segmenter.load_state_dict(_load(folder / SEGMENTER_FILE))
    return segmenter.eval().requires_grad_(False)


def _halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Vectors (biases, batch statistics) are small and some exceed half precision's range: they stay as they are.
    return {
        key: (value.half() if value.ndim > 1 and value.is_floating_point() else value)
        .detach()
        .cpu()
        for key, value in tensors.items()
    }


def _load(path: Path, *required: str, device: torch.device | None = None) -> dict[str, Tensor]:
    tensors = read_tensors(path, *required, device=device)
    return {
        key: value.float() if value.is_floating_point() else value for key, value in tensors.items()
    }


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_hash(path: Path, expected: str) -> None:
    try:
        found = _hash(path)
    except OSError as error:
        raise BundleError(f"expected {path}, got {error}") from error
    if found != expected:
        raise BundleError(f"expected {path} with SHA-256 {expected[:12]}…, got {found[:12]}…")
