"""A CLIP from scratch: small towers, trained on the world's captions alone, in a folder that open_clip reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor

from benchmarks.offline_clip.anchor import anchor, weakest_direction, with_projection_bias
from benchmarks.offline_clip.build import save_clip
from models.training.loop import Optimization, ParameterGroup, Step, fit
from models.training.prompts import RegionBatches

IMAGE_SIZE = 64
CONTEXT_LENGTH = 16
MEAN, STD = 0.5, 0.25
PREPROCESS = {
    "size": IMAGE_SIZE, "mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bicubic", "resize_mode": "shortest",
}  # fmt: skip


Tower = Literal["cnn", "vit"]
TOWERS: dict[Tower, dict[str, Any]] = {
    "cnn": {
        "timm_model_name": "test_resnet",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "timm_proj_bias": False,
    },
    # Its embedding is the mean patch's, as CLIP-ES reads it. With the class token's, as OpenAI's, so small a network
    # puts next to nothing about places into its patches.
    "vit": {"patch_size": 8, "width": 64, "layers": 3, "head_width": 32, "pool_type": "avg"},
}
EPOCHS: dict[Tower, int] = {"cnn": 10, "vit": 20}


def model_config(tower: Tower = "cnn") -> dict[str, Any]:
    """Return open_clip's ``model_cfg``."""
    return {
        "embed_dim": 64,
        "vision_cfg": {**TOWERS[tower], "image_size": IMAGE_SIZE},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": 49408,
            "width": 64,
            "heads": 2,
            "layers": 2,
        },
    }


@dataclass(frozen=True)
class Captioned:
    """Pictures with sentences, in memory.

    Attributes:
        images: (N, 3, S, S) uint8.
        sentences: the distinct ones.
        which: each picture's sentence, (N,).
    """

    images: Tensor
    sentences: tuple[str, ...]
    which: Tensor


def load_captioned(pairs: Sequence[tuple[Path, str]]) -> Captioned:
    """Read pictures at the size that the image tower takes."""
    sentences = tuple(sorted({sentence for _, sentence in pairs}))
    images = []
    for path, _ in pairs:
        with Image.open(path) as picture:
            small = picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        images.append(torch.from_numpy(np.array(small)).permute(2, 0, 1))
    which = torch.tensor([sentences.index(sentence) for _, sentence in pairs])
    return Captioned(torch.stack(images), sentences, which)


def soft_holes(count: int, *, generator: torch.Generator) -> Tensor:
    """Return masks (N, 1, S, S) in [0, 1] that fade random parts of half of the pictures to the mean color.

    The method shows CLIP such pictures. One that has seen millions takes a hole for nothing; this one has to learn it.
    """
    coarse = torch.rand((count, 1, 4, 4), generator=generator) * 2
    coarse[torch.rand(count, generator=generator) < 0.5] = 1
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return F.interpolate(coarse.clamp(max=1), size=size, mode="bilinear", align_corners=True)


def contrastive_losses(model: CLIP, data: Captioned, tokens: Tensor) -> Callable[[Tensor], Mapping[str, Tensor]]:
    """Return CLIP's loss of a batch, in which pictures may share a sentence.

    Each picture must find its sentence among the distinct ones of the batch, and each sentence its pictures.

    Args:
        model: that learns.
        data: pictures with sentences.
        tokens: of the sentences, (V, L).
    """

    def losses_of(batch: Tensor) -> Mapping[str, Tensor]:
        images = (data.images[batch].float() / 255 - MEAN) / STD
        source = torch.Generator().manual_seed(torch.initial_seed())  # the loop's seed of this step
        mirrored = torch.rand(len(batch), generator=source) < 0.5
        images[mirrored] = images[mirrored].flip(-1)
        images = images * soft_holes(len(batch), generator=source)
        shown, position = torch.unique(data.which[batch], return_inverse=True)
        pictures = model.encode_image(images, normalize=True)
        texts = model.encode_text(tokens[shown], normalize=True)
        logits = model.logit_scale.exp().clamp(max=50) * pictures @ texts.T
        same = F.one_hot(position, len(shown)).float()
        return {
            "to_text": F.cross_entropy(logits, position),
            "to_image": F.cross_entropy(logits.T, (same / same.sum(dim=0)).T),
        }

    return losses_of


def train_clip(
    data: Captioned,
    folder: Path,
    *,
    tower: Tower,
    epochs: int,
    seed: int,
    on_step: Callable[[Step], None] = lambda _: None,
    anchors: tuple[float, float] = (0.5, 0.5),
) -> None:
    """Train a CLIP and write it as a folder for ``local-dir:``.

    Args:
        data: pictures with sentences.
        folder: to write.
        tower: of the images.
        epochs: over all pictures.
        seed: of weights and batches.
        on_step: called after each step.
        anchors: lengths of the constant parts of text and image embeddings, relative to the rest; they lift cosines
            off 0, where the method's losses have no gradient (see ``benchmarks.offline_clip.anchor``).
    """
    torch.manual_seed(seed)
    config = model_config(tower)
    model = CLIP(**config).train()
    with torch.no_grad():  # so far apart that two layers can tell the words
        model.token_embedding.weight.mul_(10)
    tokens = SimpleTokenizer(context_length=CONTEXT_LENGTH)(list(data.sentences))
    fit(
        [ParameterGroup(model.parameters())],
        RegionBatches(len(data.which), batch_size=64, seed=seed),
        contrastive_losses(model, data, tokens),
        Optimization(epochs, 1e-3, 0.05, seed=seed),
        on_step=on_step,
    )
    model.eval()
    text, image = typical_norms(model, data, tokens)
    if tower == "cnn":
        config, model = with_projection_bias(config, model)
        anchor(model, text_shift=anchors[0] * text, image_shift=anchors[1] * image)
    else:
        _anchor_vit(model, text_shift=anchors[0] * text, image_shift=anchors[1] * image)
    save_clip(model, folder, config=config, preprocess=PREPROCESS)


@torch.no_grad()
def _anchor_vit(model: CLIP, *, text_shift: float, image_shift: float) -> None:
    """Do as ``anchor`` with a tower whose projection has no bias: the last norms' biases shift the embeddings."""
    weak = weakest_direction(model.text_projection)
    model.ln_final.bias += text_shift * weak.shift
    model.visual.ln_post.bias += image_shift * weak.direction @ torch.linalg.pinv(model.visual.proj)


@torch.no_grad()
def typical_norms(model: CLIP, data: Captioned, tokens: Tensor) -> tuple[float, float]:
    """Return the mean norms of text and image embeddings before normalization."""
    images = (data.images[:256].float() / 255 - MEAN) / STD
    return float(model.encode_text(tokens).norm(dim=1).mean()), float(model.encode_image(images).norm(dim=1).mean())
