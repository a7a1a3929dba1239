"""Encoder-decoder segmenters (kind "light"): decoders of segmentation-models-pytorch on timm backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.segmenters import Segmenter, pixel_loss


class _EncoderDecoder(Segmenter):
    """A network of segmentation-models-pytorch that returns logits."""

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        frozen_statistics: bool,
    ) -> None:
        super().__init__(mean=mean, std=std)
        # Channels last, as in models.clip.
        self.network: Any = network.to(memory_format=torch.channels_last)
        self.frozen_statistics = frozen_statistics

    @property
    def backbone(self) -> nn.Module:
        """The encoder."""
        encoder: nn.Module = self.network.encoder
        return encoder

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a pre-trained encoder stays in evaluation mode, though its weights learn."""
        super().train(mode)
        if self.frozen_statistics:
            self.network.encoder.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities, (B, K + 1, h, w); see Segmenter."""
        return self._logits(images).float().softmax(dim=1)

    def loss(
        self, images: Tensor, label_maps: Tensor, *, noise_aware: bool = False, class_weights: Tensor | None = None
    ) -> Mapping[str, Tensor]:
        """Return the cross-entropy of the pixels that are not 255; see Segmenter."""
        logits = F.interpolate(self._logits(images), size=label_maps.shape[-2:], mode="bilinear", align_corners=False)
        return pixel_loss(logits, label_maps, noise_aware=noise_aware, class_weights=class_weights)

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.normalize(images))
        return logits


def build_encoder_decoder(
    decoder: str,
    backbone: str,
    *,
    classes: int,
    pretrained: bool = False,
    trunk: nn.Module | None = None,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
) -> _EncoderDecoder:
    """Build a decoder of segmentation-models-pytorch, with random weights, on a timm backbone.

    The backbone starts from timm's weights (``pretrained``) or those of ``trunk``, a timm classifier of the same name.
    Normalization is (mean, std); None takes timm's.

    Raises:
        ValueError: if the backbone cannot be built, does not fit the decoder, or differs from the trunk.
    """
    try:
        import segmentation_models_pytorch as smp  # noqa: PLC0415 (seconds to import, and only segmenters need it)
    except ImportError as error:
        raise ValueError("expected the package segmentation-models-pytorch for a light segmenter, got none") from error
    try:
        network = smp.create_model(
            decoder,
            encoder_name=f"tu-{backbone}",
            encoder_weights="imagenet" if pretrained else None,
            classes=classes + 1,
        )
    except OSError as error:  # before ValueError: some of the hub's are both
        raise ValueError(
            f"expected the weights of {backbone!r} from the model hub or its cache, got: {error}"
        ) from error
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"expected a timm backbone that {decoder} can stand on, got {backbone!r} ({error})") from error
    # Its head upsamples logits to the image's size: the decoder's grid is enough for probabilities.
    network.segmentation_head[1] = nn.Identity()
    if trunk is not None:
        _copy_weights(network.encoder.model, trunk, name=backbone)
    data = timm.data.resolve_data_config({}, model=network.encoder.model)
    mean, std = normalization or (data["mean"], data["std"])
    return _EncoderDecoder(network, mean=mean, std=std, frozen_statistics=pretrained or trunk is not None)


def _copy_weights(features: nn.Module, trunk: nn.Module, *, name: str) -> None:
    """Copy a classifier's weights into timm's feature network of the same name, which may spell "." as "_"."""
    found = {key.replace(".", "_"): value for key, value in trunk.state_dict().items()}
    wanted = {key: found.get(key.replace(".", "_")) for key in features.state_dict()}
    shapes = {key: value.shape for key, value in features.state_dict().items()}
    if any(value is None or value.shape != shapes[key] for key, value in wanted.items()):
        raise ValueError(f"expected a trunk that is {name!r}, got another network")
    features.load_state_dict(wanted)
