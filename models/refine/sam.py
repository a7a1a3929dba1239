"""Region proposals by SAM (Kirillov et al., *Segment Anything*, ICCV 2023), as the transformers library has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from models.refine.regions import Regions, from_masks


@dataclass(frozen=True)
class SamProposals:
    """The masks that SAM finds when asked about each point of a grid; they overlap and leave gaps.

    The thresholds' defaults are SAM's own; none was tuned here.

    Attributes:
        find_masks: a mask-generation pipeline of transformers.
        points_per_side: of the grid.
        points_at_once: how many share a run of the mask decoder; more take more memory, about 12 MB each.
        min_quality: a mask is kept if the IoU that SAM predicts for it is above.
        min_stability: a mask is kept if the IoU of its versions cut at logits 1 and -1 is above.
        max_overlap: of two masks whose boxes have a higher IoU, the one of lower quality is dropped.
    """

    find_masks: Callable[..., Mapping[str, Any]]
    points_per_side: int = 32
    points_at_once: int = 32
    min_quality: float = 0.88
    min_stability: float = 0.95
    max_overlap: float = 0.7

    def __call__(self, image: Tensor) -> Regions:
        """Propose regions of an image, (3, H, W) in [0, 1]; none if SAM is sure of no mask."""
        # Whatever the networks around it compute in: its post-processing knows single precision alone.
        with torch.autocast(image.device.type, enabled=False):
            found = self.find_masks(
                to_pil_image((image.float() * 255).round().byte().cpu()),
                points_per_crop=self.points_per_side,  # a crop's points per side, whatever the name says
                points_per_batch=self.points_at_once,
                pred_iou_thresh=self.min_quality,
                stability_score_thresh=self.min_stability,
                crops_nms_thresh=self.max_overlap,
            )["masks"]
        nothing = torch.zeros(0, *image.shape[1:], dtype=torch.bool)
        return from_masks((torch.stack(found) if found else nothing).to(image.device))


def load_sam(name: str, *, device: torch.device) -> SamProposals:
    """Load a SAM.

    Args:
        name: a folder that transformers' ``SamModel`` and ``SamImageProcessor`` were saved to, or a hub name, such as
            ``facebook/sam-vit-base``, which is downloaded once; safetensors only.
        device: where it works.

    Raises:
        ValueError: if transformers is not installed, or the weights are missing or not SAM's.
    """
    try:
        library: Any = import_module("transformers")  # seconds to import, and only SAM needs it
    except ImportError as error:
        raise ValueError("expected the package transformers for SAM, got none") from error
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415 (comes with transformers)

    try:
        processor = library.SamImageProcessor.from_pretrained(name)
        model, report = library.SamModel.from_pretrained(
            name,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, with the missing ones
            output_loading_info=True,
        )
    except (
        AttributeError,
        KeyError,
        OSError,
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
        TypeError,
        ValueError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"expected a SAM in {name!r}, a folder or hub name ({reason})") from error
    # The library fills what it does not find with random numbers.
    random = len(report["missing_keys"]) + len(report["mismatched_keys"])
    if random:
        raise ValueError(
            f"expected a SAM in {name!r}, got weights without {random} of its "
            f"{len(model.state_dict())} tensors"
        )
    return SamProposals(
        library.pipeline("mask-generation", model=model, image_processor=processor, device=device)
    )
