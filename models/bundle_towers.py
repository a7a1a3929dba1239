"""CLIP's towers in a bundle: what its image tower shares with the generator's backbone is stored once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, equal

from models.bundle_info import ImageTowerSpec, TextTowerSpec
from models.clip import FrozenImageTower, build_image_tower
from models.clip_text import FrozenTextTower, build_text_tower

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
