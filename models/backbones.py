"""A timm network made of two, whose features stand side by side: networks that err differently see more together.

Importing this module registers it, so that ``timm.create_model`` and a CLIP's configuration may name it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.models import FeatureInfo, register_model
from torch import Tensor, nn


class SideBySide(nn.Module):
    """Two timm networks as one, in as much of timm's interface as CLIP's image tower and mask generators need.

    It has no classifier: its output is the pooled features of both, or with ``global_pool=""`` their maps.
    """

    def __init__(self, networks: Mapping[str, Any], *, architecture: str, global_pool: str) -> None:
        super().__init__()
        self.networks: Any = nn.ModuleDict(networks)
        self.num_features = sum(each.num_features for each in networks.values())
        levels = zip(*(each.feature_info for each in networks.values()), strict=True)
        self.feature_info = [{**same[0], "num_chs": sum(each["num_chs"] for each in same)} for same in levels]
        self.pretrained_cfg = _describe(networks, architecture)
        self.default_cfg = self.pretrained_cfg
        self.reset_classifier(0, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Choose the pooling, "avg" or "" for none; ValueError for another, or if a classifier is asked for."""
        if num_classes or global_pool not in ("avg", ""):
            raise ValueError(
                "expected average pooling or none, and no classifier, on networks side by side, "
                f"got {global_pool!r} and {num_classes} classes"
            )
        self.global_pool = global_pool

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features, (B, 3, H, W) → (B, C), or maps, (B, C, h, w)."""
        maps = torch.cat([each.forward_features(images) for each in self.networks.values()], dim=1)
        return maps.mean(dim=(2, 3)) if self.global_pool else maps

    def forward_intermediates(self, images: Tensor, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Return the last maps and those of the stages ``indices``, numbered as in ``feature_info``."""
        found = [each.forward_intermediates(images, indices=list(indices)) for each in self.networks.values()]
        last = torch.cat([maps for maps, _ in found], dim=1)
        return last, [torch.cat(maps, dim=1) for maps in zip(*(stages for _, stages in found), strict=True)]


class _LevelsSideBySide(nn.Module):
    """Two timm ``features_only`` networks as one: the maps of each level side by side."""

    def __init__(self, networks: Mapping[str, Any], *, architecture: str) -> None:
        super().__init__()
        self.networks: Any = nn.ModuleDict(networks)
        infos = [each.feature_info for each in networks.values()]
        first = infos[0]
        widths = [sum(each) for each in zip(*(info.channels() for info in infos), strict=True)]
        levels = zip(widths, first.reduction(), first.module_name(), strict=True)
        self.feature_info = FeatureInfo(
            [{"num_chs": width, "reduction": stride, "module": module} for width, stride, module in levels],
            out_indices=tuple(range(len(widths))),
        )
        self.pretrained_cfg = _describe(networks, architecture)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of each level, (B, 3, H, W) → (B, C, h, w) each."""
        levels = zip(*(each(images) for each in self.networks.values()), strict=True)
        return [torch.cat(maps, dim=1) for maps in levels]


def _describe(networks: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    return {**next(iter(networks.values())).pretrained_cfg, "architecture": architecture}


def _side_by_side(names: Mapping[str, str], *, architecture: str, options: Mapping[str, Any]) -> nn.Module:
    if options.get("pretrained"):
        raise ValueError(f"expected weights for {architecture} from a CLIP or a bundle, got a request for timm's own")
    foreign = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "global_pool", "num_classes"}
    passed = {key: value for key, value in options.items() if key not in foreign}
    if passed.get("features_only"):
        levels = {key: timm.create_model(name, **passed) for key, name in names.items()}
        return _LevelsSideBySide(levels, architecture=architecture)
    networks = {key: timm.create_model(name, num_classes=0, **passed) for key, name in names.items()}
    return SideBySide(networks, architecture=architecture, global_pool=options.get("global_pool", "avg"))


def efficientnet_lite0_lite2(**options: Any) -> nn.Module:
    """EfficientNet-Lite0 and -Lite2, 2,560 channels at stride 32; options as of ``timm.create_model``."""
    names = {"lite0": "tf_efficientnet_lite0", "lite2": "tf_efficientnet_lite2"}
    return _side_by_side(names, architecture="efficientnet_lite0_lite2", options=options)


register_model(efficientnet_lite0_lite2)
