"""Mask2Former of the transformers library: queries that each propose a class and a mask."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from models.data.classes import IGNORE_INDEX
from models.segmenters import Segmenter

_TERMS = {"class": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}
# So low that the mask loss (5e-5), the dice loss and the choice of uncertain points ignore it.
_ABSENT_LOGIT = -10.0


class Mask2FormerSegmenter(Segmenter):
    """Mask2Former of transformers with its own set loss; K + 1 labels, the background first."""

    def __init__(
        self,
        network: Any,
        *,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__(mean=mean, std=std)
        self.network = network
        # Swin's last norm is for its classifier: here it never gets a gradient, and distributed training would wait.
        self.network.model.pixel_level_module.encoder.swin.layernorm.requires_grad_(False)

    @property
    def backbone(self) -> nn.Module:
        """The Swin transformer."""
        encoder: nn.Module = self.network.model.pixel_level_module.encoder
        return encoder

    @property
    def architecture(self) -> dict[str, Any]:
        """The argument of ``build_mask2former`` to build this network again, in JSON's types."""
        architecture: dict[str, Any] = json.loads(self.network.config.to_json_string())
        # Where weights came from may be a path of the machine that trained.
        for part in (architecture, architecture["backbone_config"]):
            part.pop("_name_or_path", None)
            part.pop("transformers_version", None)
        return architecture

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities, (B, K + 1, h, w): a class's share of all queries' mass at a pixel."""
        output = self.network(pixel_values=self.normalize(images))
        classes = output.class_queries_logits.float().softmax(dim=-1)[..., :-1]
        masks = output.masks_queries_logits.float().sigmoid()
        # The small number avoids a division by 0 where no query has any mass.
        mass = torch.einsum("bqk,bqhw->bkhw", classes, masks) + 1e-6
        return mass / mass.sum(dim=1, keepdim=True)

    def loss(
        self, images: Tensor, label_maps: Tensor, *, noise_aware: bool = False, class_weights: Tensor | None = None
    ) -> Mapping[str, Tensor]:
        """Return the set loss over all decoder layers: classes, masks, dice; ValueError for a pixel-wise option.

        The library's loss counts every pixel outside a mask as "not this class". Ignored pixels therefore get constant
        logits that agree with that, without loss or gradient, and an image with no other pixels is left out. One effect
        remains: a query for a class in ignored pixels alone learns "no object", at that class's small weight.
        """
        if noise_aware or class_weights is not None:
            raise ValueError("expected a segmenter with a loss of pixels for its options, got mask2former")
        labeled = (label_maps != IGNORE_INDEX).flatten(1).any(dim=1)
        if not labeled.any():
            nothing = torch.stack([each.sum() for each in self.parameters()]).sum() * 0
            return dict.fromkeys(_TERMS, nothing)
        output = self.network(pixel_values=self.normalize(images[labeled]), output_auxiliary_logits=True)
        # SciPy's matching does not take bfloat16.
        with torch.autocast(images.device.type, enabled=False):
            terms = self._set_loss(output, label_maps[labeled])
        return {
            name: torch.stack([value for key, value in terms.items() if key.startswith(prefix)]).sum()
            for name, prefix in _TERMS.items()
        }  # fmt: skip

    def _set_loss(self, output: Any, label_maps: Tensor) -> Mapping[str, Tensor]:
        """The library's loss terms of every decoder layer, by its names."""
        size = output.masks_queries_logits.shape[-2:]
        targets = [_mask_targets(label_map, size=size) for label_map in label_maps]
        shares = F.adaptive_avg_pool2d(_valid(label_maps), size)
        ignored = shares[:, None] == 0

        def without_ignored(masks: Tensor) -> Tensor:
            return masks.float().masked_fill(ignored, _ABSENT_LOGIT)

        terms: Mapping[str, Tensor] = self.network.get_loss_dict(
            masks_queries_logits=without_ignored(output.masks_queries_logits),
            class_queries_logits=output.class_queries_logits.float(),
            mask_labels=[masks for masks, _ in targets],
            class_labels=[channels for _, channels in targets],
            auxiliary_predictions=[
                {
                    "masks_queries_logits": without_ignored(layer["masks_queries_logits"]),
                    "class_queries_logits": layer["class_queries_logits"].float(),
                }
                for layer in output.auxiliary_logits
            ],
        )
        return terms


def _mask_targets(label_map: Tensor, *, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return a set loss's targets for a label map (H, W): masks (n, h, w) on a grid, channels (n,)."""
    channels = torch.unique(label_map)
    channels = channels[channels != IGNORE_INDEX]
    regions = (label_map == channels[:, None, None]).float()
    shares = F.adaptive_avg_pool2d(_valid(label_map)[None], size)
    return F.adaptive_avg_pool2d(regions, size) / shares.clamp(min=1e-6), channels


def _valid(label_map: Tensor) -> Tensor:
    return (label_map != IGNORE_INDEX).float()


def build_mask2former(
    architecture: Mapping[str, Any], *, classes: int, weights: str | None = None
) -> Mask2FormerSegmenter:
    """Build a Mask2Former for K classes from fields of transformers' ``Mask2FormerConfig``.

    ``weights`` is the hub name or folder of a whole Mask2Former or of a Swin backbone; None is random.

    Raises:
        ValueError: if the architecture cannot be built, or the weights are of another kind.
        OSError: if the weights cannot be fetched.
    """
    try:
        import transformers as library  # noqa: PLC0415 (seconds to import, and only Mask2Former needs it)
    except ImportError as error:
        raise ValueError("expected the package transformers for Mask2Former, got none") from error
    network_class = library.Mask2FormerForUniversalSegmentation
    fields = {key: value for key, value in architecture.items() if key not in ("id2label", "label2id")}
    fields["num_labels"] = classes + 1
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415 (comes with transformers)

    try:
        kind = library.AutoConfig.from_pretrained(weights).model_type if weights else None
        if kind == "mask2former":
            # Another number of classes than it was trained for gets a new class predictor.
            network = network_class.from_pretrained(
                weights, ignore_mismatched_sizes=True, dtype=torch.float32, **fields
            )
        elif kind == "swin":
            stages = [f"stage{number}" for number in range(1, 5)]
            swin = library.SwinBackbone.from_pretrained(weights, out_features=stages, dtype=torch.float32)  # fmt: skip
            fields["backbone_config"] = swin.config.to_dict()  # type: ignore[no-untyped-call]
            network = network_class(library.Mask2FormerConfig(**fields))
            network.model.pixel_level_module.encoder.load_state_dict(swin.state_dict())
        elif kind is None:
            network = network_class(library.Mask2FormerConfig(**fields))
        else:
            raise ValueError(f"expected weights of mask2former or swin, got {kind} in {weights}")
    except (AttributeError, KeyError, RuntimeError, StrictDataclassError, TypeError) as error:
        raise ValueError(f"expected a Mask2Former that transformers builds ({error})") from error
    return Mask2FormerSegmenter(network)
