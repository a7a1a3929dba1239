"""A CAM network on any timm backbone: features, a 1×1 convolution without bias, ReLU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from models.generators import MaskGenerator
from models.generators.affinity import cosine_affinity

# Cosines of rectified features are high everywhere; their power leaves the near ones.
SHARPNESS = 4


class CnnGenerator(MaskGenerator):
    """The CAM network that CLIMS-like methods use.

    Args:
        backbone: maps normalized images (B, 3, H, W) to features (B, C, h, w).
        head: weights of the 1×1 convolution, one row a class, (K, C).
        mean: of the backbone's input normalization, per RGB channel.
        std: of the backbone's input normalization, per RGB channel.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        classes, channels = head.shape
        self.backbone = backbone.to(memory_format=torch.channels_last)  # as in models.clip
        self.head = nn.Conv2d(channels, classes, kernel_size=1, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(head[:, :, None, None])
        self.normalize_by(mean=mean, std=std)

    def logits(self, images: Tensor) -> Tensor:
        """Return signed class evidence, (B, K, h, w), for images in [0, 1], (B, 3, H, W)."""
        evidence: Tensor = self.head(self.features(images))
        return evidence

    def evidence(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return the mean evidence of each class, (B, K), for images in [0, 1], (B, 3, H, W)."""
        return {"classify": self.logits(images).mean(dim=(2, 3))}

    def features(self, images: Tensor) -> Tensor:
        """Return the backbone's map, (B, C, h, w), for images in [0, 1], (B, 3, H, W)."""
        features: Tensor = self.backbone(self.normalize(images))
        return features

    def cams(self, features: Tensor) -> Tensor:
        """Return non-negative CAMs, (B, K, h, w), of the backbone's map."""
        evidence: Tensor = self.head(features)
        return evidence.relu()

    def affinity(self, features: Tensor) -> Tensor:
        """Return a power of the positive cosines between the places of the backbone's map, (B, h, w, h, w)."""
        return cosine_affinity(features) ** SHARPNESS


class _LastStage(nn.Module):
    """The last feature map of a timm ``features_only`` network, channels first."""

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        self.features = features
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.features(images)[-1]
        # Swin and its kin answer channels last.
        return maps if maps.shape[1] == self.channels else maps.permute(0, 3, 1, 2)


def _first_accepted(
    name: str, attempts: Sequence[Mapping[str, Any]], *, pretrained: bool, level: int
) -> Any:
    """Build a ``features_only`` network with the first options that its family knows."""
    for options in attempts[:-1]:
        try:
            return timm.create_model(
                name, pretrained=pretrained, features_only=True, out_indices=(level,), **options
            )
        except (TypeError, AssertionError):  # not of this family
            continue
    return timm.create_model(
        name, pretrained=pretrained, features_only=True, out_indices=(level,), **attempts[-1]
    )


def cnn_generator(
    name: str,
    *,
    classes: int,
    pretrained: bool,
    output_stride: int,
    generator: torch.Generator,
    level: int = -1,
) -> CnnGenerator:
    """Build a CAM network from any timm backbone that has ``features_only``, with a random head.

    Args:
        name: timm's model name.
        classes: K.
        pretrained: load timm's weights, from the model hub or its cache.
        output_stride: 8, 16 or 32; networks that cannot dilate keep their own.
        generator: source of randomness of the head.
        level: which of the backbone's maps the head reads, as timm counts them; earlier ones see less around a place.

    Raises:
        ValueError: if timm does not know the name or cannot fetch its weights.
    """
    # Families differ in what they take: dilation, or leave to see images of other sizes than their own.
    attempts: tuple[dict[str, Any], ...] = (
        {"output_stride": output_stride},
        {"dynamic_img_size": True},
        {"strict_img_size": False},
        {},
    )
    try:
        features = _first_accepted(name, attempts, pretrained=pretrained, level=level)
    except OSError as error:
        raise ValueError(
            f"expected the weights of {name!r} from the model hub or its cache, got: {error}"
        ) from error
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"expected a backbone that timm can build, got {name!r} ({error})"
        ) from error
    channels = int(features.feature_info.channels()[-1])
    head = torch.empty(classes, channels).normal_(0, 0.01, generator=generator)
    data = timm.data.resolve_data_config({}, model=features)
    return CnnGenerator(
        _LastStage(features, channels),
        head,
        mean=data["mean"],
        std=data["std"],
    )
