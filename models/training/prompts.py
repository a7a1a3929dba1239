"""Stage (b): background prompts learn from region embeddings that never change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.clip import FrozenClip
from models.data.loaders import Batch, derive_seed, random_order
from models.inference.multi_scale import resize_images
from models.losses import MasksOf, contrastive_prompt_learning, mask_images, present_pairs
from models.prompts import BackgroundPrompts


@dataclass(frozen=True)
class RegionEmbeddings:
    """Every background region of a data set, embedded.

    Attributes:
        background: (N, D), L2-normalized.
        channels: class channel of each, (N,).
    """

    background: Tensor
    channels: Tensor


@torch.no_grad()
def embed_backgrounds(
    batches: Iterable[Batch],
    masks_of: MasksOf,
    clip: FrozenClip,
    *,
    device: torch.device,
    on_images: Callable[[int], None] = lambda _: None,
) -> RegionEmbeddings:
    """Embed the background region of every (image, present class) pair of the batches.

    Nothing upstream of the prompts learns in stage (b), so these are constants: embedding them once turns each epoch
    into a few matrix products.

    Args:
        batches: images (B, 3, H, W) in [0, 1] and labels (B, K).
        masks_of: soft masks of the present classes.
        clip: the frozen CLIP.
        device: where the work is done.
        on_images: called after each batch with how many images it had.

    Raises:
        ValueError: if the batches hold no present class.
    """
    backgrounds, channels = [], []
    for images, labels in batches:
        present = present_pairs(labels.to(device))
        on_device = images.to(device)
        seen = clip.normalize(resize_images(on_device, clip.input_size))
        regions = mask_images(seen, masks_of(on_device, present), present)
        backgrounds.append(clip.embed_images(regions.background).float())
        channels.append(present[:, 1])
        on_images(len(images))
    if not sum(len(each) for each in channels):
        raise ValueError("expected at least one labeled image, got none")
    return RegionEmbeddings(torch.cat(backgrounds), torch.cat(channels))


class RegionBatches:
    """Indices of one view's regions an epoch, in random batches; an incomplete last one is dropped if not the only.

    Args:
        count: N regions, view by view, each view of the same ones.
        views: that stand for augmentation drawn anew each epoch; an epoch sees each region once.
        batch_size: images of the paper's batch; a region counts as one.
        seed: source of the order.
    """

    def __init__(self, count: int, *, views: int = 1, batch_size: int, seed: int) -> None:
        self.count = count // views
        self.views = views
        self.batch_size = min(batch_size, self.count)
        self.seed = seed

    def __len__(self) -> int:
        return self.count // self.batch_size

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Tensor]:
        """Iterate over an epoch's batches, without the first few."""
        order = torch.tensor(random_order(self.count, derive_seed(self.seed, number)))
        rows = order + number % self.views * self.count
        for place in range(skip, len(self)):
            yield rows[place * self.batch_size : (place + 1) * self.batch_size]


def prompt_losses(
    prompts: BackgroundPrompts,
    clip: FrozenClip,
    regions: RegionEmbeddings,
    class_text: Tensor,
    *,
    text_weight: float,
) -> Callable[[Tensor], Mapping[str, Tensor]]:
    """Return the loss of a batch of region indices, L_prompt.

    Only the prompts of the classes in the batch are embedded, each once.

    Args:
        prompts: what learns.
        clip: the frozen CLIP.
        regions: embedded background regions.
        class_text: class text embeddings, (K, D).
        text_weight: w_t.
    """

    def losses_of(batch: Tensor) -> Mapping[str, Tensor]:
        rows = batch.to(regions.channels.device)
        channels, back = torch.unique(regions.channels[rows], return_inverse=True)
        embedded = clip.embed_prompts(prompts.context[channels]).float()[back]
        loss = contrastive_prompt_learning(
            regions.background[rows],
            embedded,
            class_text[regions.channels[rows]],
            text_weight=text_weight,
        )
        return {"prompt": loss}

    return losses_of
