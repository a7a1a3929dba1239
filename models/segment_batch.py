"""Photos without labels through the segmenter, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from models.activated import Activated, hints_for
from models.bundle import Bundle
from models.photos import Unlabeled
from models.refine.regions import Regions
from models.segmentation import OnProgress
from models.segmenter_config import SegmentConfig
from models.segmenters import Segmenter
from models.segmenters.inference import among, segment_images, stretched_winners
from models.working import working_images


def activate_unlabeled(
    bundle: Bundle,
    segmenter: Segmenter,
    settings: SegmentConfig,
    batch: Sequence[Unlabeled],
    *,
    propose: Callable[[Tensor], Regions] | None,
    on_progress: OnProgress,
) -> list[Activated]:
    """Ask the segmenter what photos of one working size show; see ``Predictor.activate_segments``.

    Args:
        bundle: whose mask generator knows how alike places are; its tensors' device is where the work is done.
        segmenter: the bundle's.
        settings: the bundle's.
        batch: photos with what to do.
        propose: a network that proposes regions of an image, (3, H, W), if there is one.
        on_progress: called with a stage's name and the fraction of all work done.
    """
    device = bundle.class_text.device
    working = working_images([each.image for each in batch], settings.image_size, device=device)
    probabilities = segment_images(
        segmenter,
        working,
        scales=settings.scales,
        flip=settings.flip,
        window=settings.window,
        on_scale=lambda done: on_progress("segment", 0.7 * done),
    )
    hints = hints_for(batch, working, features=bundle.generator.features, propose=propose)
    size = (working.shape[-2], working.shape[-1])
    activated = []
    for number, photo in enumerate(batch):
        # Of tens of classes few are somewhere the best: the others' maps are not even stretched.
        channels, kept = stretched_winners(probabilities[number, None], size)
        shares, together = among(kept)
        classes = tuple(bundle.info.classes.classes[channel] for channel in channels.tolist())
        activated.append(
            Activated(
                photo, working[number, None], classes, shares[0, 1:], together[0, 0], hints[number]
            )
        )
    return activated
