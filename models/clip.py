"""A frozen CLIP over open_clip: embeddings of images and, by ``models.clip_text``, of texts and soft prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import open_clip
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from models.clip_text import TextEmbeddings, Tokenizer, text_tower_of

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LOCAL = "local-dir:"


class FrozenImageTower(nn.Module):
    """CLIP's image tower without gradients to its own parameters, always in evaluation mode.

    Gradients still flow through to the images.

    Args:
        visual: open_clip's image tower.
        mean: of the input normalization, per RGB channel.
        std: of the input normalization, per RGB channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, visual: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Channels last made the convolutional towers about 1.5 times faster on a CPU; transformers do not mind.
        tower = visual.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.visual: Any = tower
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: batch statistics of a frozen network must not move."""
        return super().train(False)

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) in pixels that the image tower was trained at."""
        size = self.visual.image_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def normalize(self, images: Tensor) -> Tensor:
        """Return images in [0, 1], (B, 3, H, W), as the image tower takes them: 0 is the mean color."""
        return (images - self.mean) / self.std

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed normalized images of the input size, (B, 3, H, W) → (B, D), L2-normalized.

        No image gives an empty result that keeps its gradient.
        """
        if images.shape[0] == 0:
            # Networks differ in what they do with an empty batch, so it never reaches them.
            width = self.visual(images.new_zeros((1, 3, *self.input_size))).shape[-1]
            return images.new_zeros((0, width)) + images.sum()
        return F.normalize(self.visual(images), dim=-1)


class FrozenClip(TextEmbeddings, FrozenImageTower):
    """Both towers of a CLIP; gradients flow through to images and to soft prompts.

    Args:
        model: an open_clip model with a causal text transformer (OpenAI's CLIP and its kin).
        tokenizer: open_clip's tokenizer of that model.
        mean: of the input normalization, per RGB channel.
        std: of the input normalization, per RGB channel.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, *, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        network: Any = model.eval().requires_grad_(False)
        super().__init__(network.visual, mean=mean, std=std)
        self.model: Any = network
        self.tokenizer = tokenizer

    @property
    def text(self) -> Any:
        """What holds the text tower's parts."""
        return text_tower_of(self.model)


def load_clip(model: str, pretrained: str | None, *, normalization: str = "clip") -> FrozenClip:
    """Load an open_clip model on the CPU.

    Args:
        model: open_clip's model name, or ``local-dir:PATH`` of a folder with config and weights.
        pretrained: open_clip's weights tag or a file; None where model says it all.
        normalization: "clip" for the mean and std that the model was trained with; "imagenet" for what the released
            SemPLeS experiments feed it.

    Raises:
        ValueError: if the model cannot be loaded, is not causal, or the normalization is unknown.
    """
    if normalization not in ("clip", "imagenet"):
        raise ValueError(f"expected normalization 'clip' or 'imagenet', got {normalization!r}")
    try:
        network = open_clip.create_model(
            model,
            pretrained=pretrained,
            # open_clip only warns when weights were trained with the other activation.
            force_quick_gelu=_needs_quick_gelu(model, pretrained),
            # A folder without its weights would give a random network.
            require_pretrained=model.startswith(_LOCAL),
        )
        tokenizer = open_clip.get_tokenizer(model)
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"expected a CLIP that open_clip loads (by name it is downloaded once), got {model!r}: {error}"
        ) from error
    if getattr(text_tower_of(network), "attn_mask", None) is None:
        raise ValueError(f"expected a CLIP with a causal text transformer, got {model!r}")
    mean, std = network.visual.image_mean, network.visual.image_std
    if normalization == "imagenet":
        mean, std = _IMAGENET_MEAN, _IMAGENET_STD
    return FrozenClip(network, tokenizer, mean=mean, std=std)


def _needs_quick_gelu(model: str, pretrained: str | None) -> bool:
    """Whether weights, such as OpenAI's, were trained with QuickGELU though the model's name does not say so."""
    known = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else None
    return bool(known and known.get("quick_gelu", False))


def vision_config(model: str, pretrained: str | None) -> dict[str, Any]:
    """Return open_clip's description of a model's image tower, enough to build it again without its text tower.

    Args:
        model: as ``load_clip`` takes it.
        pretrained: as ``load_clip`` takes it; the weights may ask for another activation.

    Raises:
        ValueError: if open_clip has no such configuration.
    """
    config = _model_config(model)
    return {
        "embed_dim": config["embed_dim"],
        "vision_cfg": config["vision_cfg"],
        "quick_gelu": config.get("quick_gelu", False) or _needs_quick_gelu(model, pretrained),
    }


def text_config(model: str, pretrained: str | None) -> dict[str, Any]:
    """Return open_clip's description of a model's text tower, enough to build it again without its image tower.

    Args:
        model: as ``load_clip`` takes it.
        pretrained: likewise; the weights may ask for another activation.

    Raises:
        ValueError: if open_clip has no such configuration, or the tokenizer is not the one that comes with open_clip.
    """
    config = _model_config(model)
    if config["text_cfg"].get("hf_tokenizer_name"):
        raise ValueError(f"expected a CLIP with open_clip's own tokenizer, got {model!r}")
    return {
        "embed_dim": config["embed_dim"],
        "text_cfg": config["text_cfg"],
        "quick_gelu": config.get("quick_gelu", False) or _needs_quick_gelu(model, pretrained),
    }


def _model_config(model: str) -> dict[str, Any]:
    config: dict[str, Any] | None
    if model.startswith(_LOCAL):
        path = Path(model.removeprefix(_LOCAL)) / "open_clip_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
    else:
        config = open_clip.get_model_config(model)
    if config is None:
        raise ValueError(f"expected a model that open_clip has a configuration of, got {model!r}")
    return config


def build_image_tower(
    config: Mapping[str, Any], *, mean: Sequence[float], std: Sequence[float]
) -> FrozenImageTower:
    """Build an image tower with random weights from what ``vision_config`` returned."""
    # open_clip builds towers only in pairs; the smallest text tower costs nothing and is dropped.
    text = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    model = open_clip.CLIP(
        config["embed_dim"], vision, text, quick_gelu=config.get("quick_gelu", False)
    )
    return FrozenImageTower(model.visual, mean=mean, std=std)
