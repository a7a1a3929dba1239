"""WeakTr: CAMs of a class-token transformer, made finer by its own attention (arXiv 2304.01184)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.generators import MaskGenerator
from models.generators.attention_fusion import AdaptiveAttentionFusion
from models.generators.mean_attention import mean_attention
from models.generators.vit import ClassTokenTransformer, Encoded
from models.generators.weaktr_sizes import WeakTrSizes

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class CamSteps:
    """From evidence to the fine CAM; each (B, K, h, w).

    Attributes:
        coarse_logits: signed class evidence of the patch tokens.
        cam: its positive part times the class tokens' attention to the place.
        fine_cam: the CAM after one step along the patches' attention to each other.
    """

    coarse_logits: Tensor
    cam: Tensor
    fine_cam: Tensor


@dataclass(frozen=True)
class ClassifierLogits:
    """Three opinions on what an image shows, each (B, K): of the class tokens, the coarse evidence and the fine CAM."""

    class_token: Tensor
    coarse: Tensor
    fine: Tensor


class WeakTrGenerator(ClassTokenTransformer, MaskGenerator):
    """WeakTr as a mask generator; masks teach its head and its fusion alone, never the trunk.

    Args:
        sizes: of the network.
        classes: K.
        mean: of the input normalization, per RGB channel.
        std: of the input normalization, per RGB channel.
    """

    def __init__(
        self,
        sizes: WeakTrSizes,
        *,
        classes: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(sizes, class_tokens=classes + sizes.spare_tokens)
        self.classes = classes
        self.head = nn.Conv2d(sizes.width, classes, kernel_size=3, padding=1)
        self.adaptive_attention_fusion = AdaptiveAttentionFusion(sizes)
        self.normalize_by(mean=mean, std=std)

    def let_learn(self, trainable: str) -> None:
        """Let head and fusion learn, whatever is asked for: masks teach nothing else."""
        super().let_learn("head")
        self.adaptive_attention_fusion.requires_grad_(True)

    def let_all_learn(self) -> None:
        """Let everything learn but the last norm, through which nothing goes."""
        super().let_all_learn()
        self.norm.requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """Return what ``cams`` and ``affinity`` read, for images in [0, 1], (B, 3, H, W).

        One map, (B, C + K + h w, h, w), without a gradient to the trunk: the patch tokens, and of the mean attention
        map what each class token and each patch pays to the place.
        """
        with torch.no_grad():
            encoded = self._encode(images)
        return self._fuse(encoded)

    def cams(self, features: Tensor) -> Tensor:
        """Return fine CAMs, (B, K, h, w), of ``features``."""
        return self.cam_steps(features).fine_cam

    def affinity(self, features: Tensor) -> Tensor:
        """Return the attention that patches pay to each other, (B, h, w, h, w), of ``features``."""
        affinity = features[:, self.sizes.width + self.classes :]
        return torch.unflatten(affinity, 1, features.shape[-2:])

    def cam_steps(self, features: Tensor) -> CamSteps:
        """Return the fine CAM of ``features`` and what leads to it."""
        # Attention is a matter of small numbers, which half precision would flush to zero.
        with torch.autocast(features.device.type, enabled=False):
            patches, attention = torch.tensor_split(features.float(), [self.sizes.width], dim=1)
            return self._steps(self.head(patches), attention)

    def classifier_logits(self, images: Tensor) -> ClassifierLogits:
        """Classify images in [0, 1], (B, 3, H, W), as pre-training needs it.

        The first two opinions teach trunk and head. The fine CAM's teaches the fusion alone, as in the public WeakTr.
        """
        encoded = self._encode(images)
        features = self._fuse(encoded.detached())
        with torch.autocast(images.device.type, enabled=False):
            patches = encoded.tokens[:, self.class_tokens :].transpose(1, 2).float()
            coarse = self.head(torch.unflatten(patches, 2, encoded.grid))
            steps = self._steps(coarse.detach(), features[:, self.sizes.width :])
        return ClassifierLogits(
            class_token=encoded.tokens[:, : self.classes].mean(dim=2),
            coarse=coarse.mean(dim=(2, 3)),
            fine=steps.fine_cam.mean(dim=(2, 3)),
        )

    def evidence(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return the three opinions of ``classifier_logits`` by name."""
        return vars(self.classifier_logits(images))

    def _steps(self, logits: Tensor, attention: Tensor) -> CamSteps:
        cam = attention[:, : self.classes] * logits.relu()
        affinity = attention[:, self.classes :].flatten(2)
        fine = cam.flatten(2) @ affinity.transpose(1, 2)
        return CamSteps(logits, cam, fine.view_as(cam))

    def _encode(self, images: Tensor) -> Encoded:
        return self.encode(self.normalize(images), pool=self.adaptive_attention_fusion.pool)

    def _fuse(self, encoded: Encoded) -> Tensor:
        weights = self.adaptive_attention_fusion(encoded.pooled)
        attention = mean_attention(encoded.queries, encoded.keys, weights)
        patches = encoded.tokens[:, self.class_tokens :].transpose(1, 2)
        to_patches = attention[:, :, self.class_tokens :]
        of_classes, of_patches = to_patches[:, : self.classes], to_patches[:, self.class_tokens :]
        together = torch.cat([patches, of_classes, of_patches], dim=1)
        return torch.unflatten(together, 2, encoded.grid)
