"""CAM networks on timm backbones: features, a 1×1 convolution without bias, ReLU; trained, or zero-shot from CLIP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.clip import FrozenClip, FrozenImageTower, FrozenTextTower
from models.generators import AddedClass, MaskGenerator

# Zero-shot evidence is a few units high, so that epsilon 0.1 in the masks' min-max stays small beside it.
_EVIDENCE_SCALE = 10.0

# Cosines of rectified features are high everywhere; their power separates the near ones.
_SHARPNESS = 4

_DETAIL_STRIDE = 16
_TRIAL_SIDE = 64


def cosine_affinity(features: Tensor) -> Tensor:
    """Return the positive cosines between all places of a feature map, (B, C, h, w) → (B, h, w, h, w)."""
    unit = F.normalize(features.flatten(2), dim=1)
    grid = features.shape[-2:]
    return (unit.transpose(1, 2) @ unit).relu().view(-1, *grid, *grid)


class CnnGenerator(MaskGenerator):
    """The CAM network of CLIMS-like methods: a backbone (B, 3, H, W) → (B, C, h, w) and a 1×1 head, (K, C).

    ``detail`` is the number of an earlier, finer stage in a backbone with timm's ``forward_intermediates``. Places that
    look alike there, too, are the same thing with more certainty, and on a finer grid.
    """

    head: nn.Conv2d

    def __init__(
        self,
        backbone: nn.Module,
        head: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        detail: int | None = None,
    ) -> None:
        super().__init__()
        classes, channels = head.shape
        self.backbone: Any = backbone.to(memory_format=torch.channels_last)  # as in models.clip
        self.head = nn.Conv2d(channels, classes, kernel_size=1, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(head[:, :, None, None])
        self.set_normalization(mean=mean, std=std)
        self._detail = detail
        if detail is not None:  # then what is far away and alike is the same thing
            self.box_share = 0.0

    def logits(self, images: Tensor) -> Tensor:
        """Return signed class evidence, (B, K, h, w), for images in [0, 1], (B, 3, H, W)."""
        evidence: Tensor = self.head(self.backbone(self.normalize(images)))
        return evidence

    def forward(self, images: Tensor) -> Tensor:
        """Map images to CAMs; see MaskGenerator. No finer map is made, so that sides may be any."""
        return self.logits(images).relu()

    def evidence(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return the mean evidence of each class, (B, K), for images in [0, 1], (B, 3, H, W)."""
        return {"classify": self.logits(images).mean(dim=(2, 3))}

    def features(self, images: Tensor) -> Tensor:
        """Return the backbone's map, (B, C, h, w), for images in [0, 1], (B, 3, H, W).

        Further channels hold the finer map: those of the r × r places that make up one.
        """
        normalized = self.normalize(images)
        if self._detail is None:
            last: Tensor = self.backbone(normalized)
            return last
        last, (fine,) = self.backbone.forward_intermediates(normalized, indices=[self._detail])
        return torch.cat([last, F.pixel_unshuffle(fine, fine.shape[-1] // last.shape[-1])], dim=1)

    def cams(self, features: Tensor, *, more: Tensor | None = None) -> Tensor:
        """Return non-negative CAMs, (B, K, h, w), of ``features``; ``more`` rows for the head, (n, C), add channels."""
        last = self._last(features)
        evidence: Tensor = self.head(last)
        if more is not None:
            evidence = torch.cat([evidence, F.conv2d(last, more[:, :, None, None])], dim=1)
        return evidence.relu()

    def chosen_cams(self, features: Tensor, present: Tensor, *, added: Sequence[AddedClass] = ()) -> Tensor:
        """Read the CAMs of some classes alone; see MaskGenerator. Each is what it is without the others."""
        more = torch.stack([each.row for each in added]) if added else None
        return self.cams(features, more=more)[present[:, 0], present[:, 1]]

    def head_rows(
        self, names: Sequence[str], class_text: Tensor, image: FrozenImageTower, text: FrozenTextTower
    ) -> Tensor:
        """Return the rows of the head, (n, C), that ``text_initialized_head`` makes of the class texts."""
        del names, text
        return text_initialized_head(image, class_text)

    def affinity(self, features: Tensor) -> Tensor:
        """Return a power of the positive cosines between places, (B, h, w, h, w), on the finer grid if there is one."""
        last, *finer = self.maps(features)
        if not finer:
            return cosine_affinity(last) ** _SHARPNESS
        fine = finer[0]
        last = F.interpolate(F.normalize(last, dim=1), size=fine.shape[-2:], mode="bilinear", align_corners=False)
        # Early features have much in common everywhere: what differs from their mean tells things apart.
        centered = fine - fine.mean(dim=(2, 3), keepdim=True)
        return cosine_affinity(last) ** _SHARPNESS * cosine_affinity(centered)

    def maps(self, features: Tensor) -> tuple[Tensor, ...]:
        """Return the maps in ``features``: the last, (B, C, h, w), and the finer one if there is one."""
        last, packed = self._last(features), features[:, self.head.in_channels :]
        if self._detail is None:
            return (last,)
        return last, F.pixel_shuffle(packed, math.isqrt(packed.shape[1] // self.map_channels[1]))

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Channels of each of the ``maps``."""
        if self._detail is None:
            return (self.head.in_channels,)
        return self.head.in_channels, int(self.backbone.feature_info[self._detail]["num_chs"])

    def _last(self, features: Tensor) -> Tensor:
        return features[:, : self.head.in_channels]


class _LastStage(nn.Module):
    """The last feature map of a timm ``features_only`` network, channels first."""

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        self.features = features
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.features(images)[-1]
        # Some families, such as Swin, return channels last.
        return maps if maps.shape[1] == self.channels else maps.permute(0, 3, 1, 2)


def _create_features(name: str, output_stride: int, *, pretrained: bool, level: int) -> Any:
    """Build a ``features_only`` network with the first option that its family accepts."""
    # Dilation, or a switch for images of other sizes than the network's own.
    options = (
        {"output_stride": output_stride},
        {"dynamic_img_size": True},
        {"strict_img_size": False},
    )
    create = partial(timm.create_model, name, pretrained=pretrained, features_only=True, out_indices=(level,))
    for option in options:
        try:
            return create(**option)
        except (TypeError, AssertionError):  # not of this family
            continue
    return create()


def cnn_generator(
    name: str,
    *,
    classes: int,
    pretrained: bool,
    output_stride: int,
    generator: torch.Generator,
    level: int = -1,
) -> CnnGenerator:
    """Build a CAM network from any timm backbone that has ``features_only``, with a random head of ``classes`` rows.

    The stride is 8, 16 or 32; networks that cannot dilate keep their own. ``level`` is the map that the head reads, in
    timm's numbering; earlier ones have smaller receptive fields.

    Raises:
        ValueError: if timm does not know the name or cannot fetch its weights.
    """
    try:
        features = _create_features(name, output_stride, pretrained=pretrained, level=level)
    except OSError as error:
        raise ValueError(f"expected the weights of {name!r} from the model hub or its cache, got: {error}") from error
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"expected a backbone that timm can build, got {name!r} ({error})") from error
    channels = int(features.feature_info.channels()[-1])
    head = torch.empty(classes, channels).normal_(0, 0.01, generator=generator)
    data = timm.data.resolve_data_config({}, model=features)
    return CnnGenerator(_LastStage(features, channels), head, mean=data["mean"], std=data["std"])


def classifier_backbone(name: str, *, output_stride: int) -> nn.Module:
    """Build a timm network up to the map that its classifier pools, (B, 3, H, W) → (B, C, h, w), random weights."""
    backbone: nn.Module = timm.create_model(
        name, pretrained=False, num_classes=0, global_pool="", output_stride=output_stride
    )
    return backbone


def detail_stage(backbone: Any) -> int | None:
    """Return the number of the last stage of stride 16, but not the last of all, in a ``classifier_backbone``.

    None if there is none, or the network does more behind its stages than ``forward_intermediates`` does.
    """
    strides = [int(each["reduction"]) for each in getattr(backbone, "feature_info", ())][:-1]
    stage = max((number for number, stride in enumerate(strides) if stride == _DETAIL_STRIDE), default=None)
    if stage is None or not hasattr(backbone, "forward_intermediates"):
        return None
    image = torch.linspace(0, 1, 3 * _TRIAL_SIDE**2).view(1, 3, _TRIAL_SIDE, _TRIAL_SIDE)
    with torch.no_grad():
        last, _ = backbone.eval().forward_intermediates(image, indices=[stage])
        return stage if torch.equal(last, backbone(image)) else None


def trunk_name(clip: FrozenClip) -> str:
    """Return timm's name of a CLIP's image trunk; ValueError unless it has pooling and one linear projection."""
    visual: Any = clip.model.visual
    projection = getattr(getattr(visual, "head", None), "proj", None)
    if not (hasattr(visual, "trunk") and isinstance(projection, nn.Linear)):
        raise ValueError(
            "expected a CLIP whose image tower is a timm trunk, pooling and a linear projection, "
            f"got {type(visual).__name__}"
        )
    return str(visual.trunk.pretrained_cfg["architecture"])


def text_initialized_head(tower: FrozenImageTower, class_text: Tensor) -> Tensor:
    """Return a 1×1 head, (K, C), whose evidence, averaged over space, is proportional to CLIP's own score of the class.

    The tower pools features f and projects them, so t · P mean(f) = mean((Pᵀt) · f): the row of a class is Pᵀt. All
    rows share one scale, by which the evidence of a feature as large as P's typical input is _EVIDENCE_SCALE.
    """
    projection = tower.visual.head.proj.weight
    with torch.no_grad():
        rows: Tensor = class_text @ projection
        scale: Tensor = _EVIDENCE_SCALE / rows.norm(dim=1).mean()
        return rows * scale


def zero_shot_generator(clip: FrozenClip, class_text: Tensor, *, output_stride: int) -> CnnGenerator:
    """Build a mask generator from a CLIP that ``trunk_name`` accepts and class texts, (K, D), alone.

    The backbone is a copy of CLIP's trunk with dilated strides, so training it does not change CLIP.
    """
    backbone = classifier_backbone(trunk_name(clip), output_stride=output_stride)
    backbone.load_state_dict(clip.model.visual.trunk.state_dict())
    mean, std = (buffer.flatten().tolist() for buffer in (clip.mean, clip.std))
    head = text_initialized_head(clip, class_text)
    return CnnGenerator(backbone, head, mean=mean, std=std, detail=detail_stage(backbone)).eval()
