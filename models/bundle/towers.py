"""The towers of CLIP in a bundle, each alone or together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from models.bundle.manifest import (
    GENERATOR_FILE,
    MANIFEST,
    TEXT_TOWER_FILE,
    TOWER_FILE,
    BundleError,
    BundleInfo,
    check_hashes,
    read_info,
)
from models.clip import (
    FrozenClip,
    FrozenImageTower,
    FrozenTextTower,
    build_image_tower,
    build_text_tower,
    join_towers,
)
from models.tensors import read_single

# A timm image tower is a trunk, which the generator may share, and a head; one of open_clip's own is shared whole.
_TRUNK, _HEAD = "trunk.", "head."


def generator_key(tower_key: str) -> str:
    """Return the mask generator's name of a tensor of the image tower that both may share."""
    return "backbone." + tower_key.removeprefix(_TRUNK)


def check_trunk(stored: Mapping[str, Tensor]) -> None:
    """Check that the generator's backbone is the image tower's, given the tensors that they do not share.

    Raises:
        ValueError: if it is not: text embeddings would not fit another.
    """
    if not all(key.startswith(_HEAD) for key in stored):
        raise ValueError(
            "expected a mask generator on the frozen trunk of CLIP's image tower beside a text tower, got another"
        )


def load_image_tower(info: BundleInfo, folder: Path, generator: Mapping[str, Tensor]) -> FrozenImageTower | None:
    """Load the image tower, if the bundle has one; ``generator`` is the mask generator's state."""
    spec = info.image_tower
    if spec is None:
        return None
    stored = read_single(folder / TOWER_FILE)
    if info.text_tower is not None:
        check_trunk(stored)
    tower = build_image_tower(spec.config, mean=spec.mean, std=spec.std)
    shared = {key: generator[generator_key(key)] for key in tower.visual.state_dict() if key not in stored}
    tower.visual.load_state_dict({**stored, **shared})
    return tower


def load_text_tower(info: BundleInfo, folder: Path) -> FrozenTextTower | None:
    """Load the text tower, if the bundle has one."""
    if info.text_tower is None:
        return None
    tower = build_text_tower(info.text_tower.config)
    tower.text.load_state_dict(read_single(folder / TEXT_TOWER_FILE))
    return tower


def load_clip_of(folder: Path) -> FrozenClip:
    """Load both towers of a bundle as one CLIP, to train other bundles with.

    Raises:
        BundleError: if the bundle is malformed or lacks a tower.
    """
    info = read_info(folder)
    check_hashes(info, folder)
    try:
        image = load_image_tower(info, folder, read_single(folder / GENERATOR_FILE))
        text = load_text_tower(info, folder)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise BundleError(f"expected weights that fit {folder / MANIFEST}, got {error}") from error
    if image is None or text is None or info.image_tower is None or info.text_tower is None:
        raise BundleError(f"expected a bundle with both towers of a CLIP, got {info.name!r} without one")
    return join_towers(image, text, {**info.image_tower.config, **info.text_tower.config})
