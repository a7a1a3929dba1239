"""WeakTr: CAMs of a class-token transformer, refined by its own attention (arXiv 2304.01184)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from models.generators import MaskGenerator
from models.generators.vit import ClassTokenTransformer, Encoded
from models.weaktr_sizes import WeakTrSizes


class _AdaptiveAttentionFusion(nn.Module):
    """Weights of all heads of all blocks, computed from their attention outputs."""

    def __init__(self, sizes: WeakTrSizes) -> None:
        super().__init__()
        self.pooling, self.heads = sizes.pooling, sizes.heads
        features = sizes.width // sizes.heads
        narrow = max(features // sizes.feature_reduction, 1)
        self.attn_feat_ffn = nn.Sequential(nn.Linear(features, narrow), nn.Linear(narrow, 1))
        count = sizes.depth * sizes.heads
        narrow = max(count // sizes.reduction, 1)
        self.attn_head_ffn = nn.Sequential(
            nn.Linear(count, narrow, bias=False), nn.ReLU(),
            nn.Linear(narrow, count, bias=False), nn.Sigmoid(),
        )  # fmt: skip

    def pool(self, outputs: Tensor) -> Tensor:
        """Pool attention outputs over tokens, (B, N, C) → (B, C)."""
        return outputs.amax(dim=1) if self.pooling == "max" else outputs.mean(dim=1)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the weights of the heads in (0, 1), (B, depth, heads), of pooled outputs, (B, depth, C)."""
        features = torch.unflatten(pooled, 2, (-1, self.heads)).movedim(3, 1)  # (B, heads, depth, d)
        weights = self.attn_head_ffn(self.attn_feat_ffn(features).flatten(1))
        return torch.unflatten(weights, 1, (self.heads, -1)).transpose(1, 2)


def _mean_attention(queries: Sequence[Tensor], keys: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the mean of all attention maps, (B, N, N), each times its weight, (B, depth, heads)."""
    with torch.autocast(weights.device.type, enabled=False):  # it would lose small attention
        mean: Tensor = _MeanAttention.apply(weights.float(), *queries, *keys)
    return mean


class _MeanAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, *queries_and_keys: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *queries_and_keys)
        batch, _, tokens, _ = queries_and_keys[0].shape
        total = weights.new_zeros((batch, tokens, tokens))
        for block, head, maps in _maps(queries_and_keys):
            total.addcmul_(maps, weights[:, block, head, None, None])
        return total.div_(weights[0].numel())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights, *queries_and_keys = ctx.saved_tensors
        toward_mean = gradients[0] / weights[0].numel()
        of_weights = torch.empty_like(weights)
        for block, head, maps in _maps(queries_and_keys):
            of_weights[:, block, head] = (maps * toward_mean).sum(dim=(1, 2))
        # In WeakTr only the weights learn from masks and the fine CAM's loss: queries and keys need no gradient.
        return of_weights, *(None,) * len(queries_and_keys)


def _maps(queries_and_keys: Sequence[Tensor]) -> Iterator[tuple[int, int, Tensor]]:
    """Yield block, head and attention map, (B, N, N), of each head; the next map overwrites it."""
    depth = len(queries_and_keys) // 2
    scores = maps = None
    for block in range(depth):
        query, key = (queries_and_keys[at].float() for at in (block, depth + block))
        query = query * query.shape[-1] ** -0.5
        for head in range(query.shape[1]):
            scores = torch.bmm(query[:, head], key[:, head].transpose(1, 2), out=scores)
            maps = torch.softmax(scores, dim=2, out=maps)
            yield block, head, maps


@dataclass(frozen=True)
class _CamSteps:
    """From evidence to the fine CAM; each (B, K, h, w)."""

    coarse_logits: Tensor  # signed class evidence of the patch tokens
    cam: Tensor  # its positive part times the class tokens' attention
    fine_cam: Tensor  # after one step along the patches' attention


@dataclass(frozen=True)
class _ClassifierLogits:
    """Classification logits of the class tokens, the coarse evidence and the fine CAM, (B, K) each."""

    class_token: Tensor
    coarse: Tensor
    fine: Tensor


class WeakTrGenerator(ClassTokenTransformer, MaskGenerator):
    """WeakTr as a mask generator; only its head and its fusion learn from masks, never the trunk."""

    def __init__(
        self,
        sizes: WeakTrSizes,
        *,
        classes: int,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__(sizes, class_tokens=classes + sizes.spare_tokens)
        self.classes = classes
        self.head = nn.Conv2d(sizes.width, classes, kernel_size=3, padding=1)
        self.adaptive_attention_fusion = _AdaptiveAttentionFusion(sizes)
        self.set_normalization(mean=mean, std=std)

    def let_learn(self, trainable: str) -> None:
        """Make head and fusion trainable; the argument is ignored, for nothing else learns from masks."""
        super().let_learn("head")
        self.adaptive_attention_fusion.requires_grad_(True)

    def let_all_learn(self) -> None:
        """Make everything trainable but the last norm, which is not used."""
        super().let_all_learn()
        self.norm.requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """Return the input of ``cams`` and ``affinity``, for images in [0, 1], (B, 3, H, W).

        One map, (B, C + K + h w, h, w), without a gradient to the trunk: the patch tokens, and the mean attention of
        each class token and each patch to the place.
        """
        with torch.no_grad():
            encoded = self._encode(images)
        return self._fuse(encoded)

    def cams(self, features: Tensor) -> Tensor:
        """Return fine CAMs, (B, K, h, w), of ``features``."""
        return self.cam_steps(features).fine_cam

    def affinity(self, features: Tensor) -> Tensor:
        """Return the attention of patches to each other, (B, h, w, h, w), of ``features``."""
        affinity = features[:, self.sizes.width + self.classes :]
        return torch.unflatten(affinity, 1, features.shape[-2:])

    def cam_steps(self, features: Tensor) -> _CamSteps:
        """Return the fine CAM of ``features`` and the steps before it."""
        # Attention weights are small numbers, which half precision would flush to zero.
        with torch.autocast(features.device.type, enabled=False):
            patches, attention = torch.tensor_split(features.float(), [self.sizes.width], dim=1)
            return self._steps(self.head(patches), attention)

    def classifier_logits(self, images: Tensor) -> _ClassifierLogits:
        """Classify images in [0, 1], (B, 3, H, W), for pre-training.

        Trunk and head learn from the first two logits, the fusion alone from the fine CAM's, as in the public WeakTr.
        """
        encoded = self._encode(images)
        features = self._fuse(encoded.detached())
        with torch.autocast(images.device.type, enabled=False):
            patches = encoded.tokens[:, self.class_tokens :].transpose(1, 2).float()
            coarse = self.head(torch.unflatten(patches, 2, encoded.grid))
            steps = self._steps(coarse.detach(), features[:, self.sizes.width :])
        return _ClassifierLogits(
            class_token=encoded.tokens[:, : self.classes].mean(dim=2),
            coarse=coarse.mean(dim=(2, 3)),
            fine=steps.fine_cam.mean(dim=(2, 3)),
        )

    def evidence(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return the logits of ``classifier_logits`` by name."""
        return vars(self.classifier_logits(images))

    def _steps(self, logits: Tensor, attention: Tensor) -> _CamSteps:
        cam = attention[:, : self.classes] * logits.relu()
        affinity = attention[:, self.classes :].flatten(2)
        fine = cam.flatten(2) @ affinity.transpose(1, 2)
        return _CamSteps(logits, cam, fine.view_as(cam))

    def _encode(self, images: Tensor) -> Encoded:
        return self.encode(self.normalize(images), pool=self.adaptive_attention_fusion.pool)

    def _fuse(self, encoded: Encoded) -> Tensor:
        weights = self.adaptive_attention_fusion(encoded.pooled)
        attention = _mean_attention(encoded.queries, encoded.keys, weights)
        patches = encoded.tokens[:, self.class_tokens :].transpose(1, 2)
        to_patches = attention[:, :, self.class_tokens :]
        of_classes, of_patches = to_patches[:, : self.classes], to_patches[:, self.class_tokens :]
        together = torch.cat([patches, of_classes, of_patches], dim=1)
        return torch.unflatten(together, 2, encoded.grid)
