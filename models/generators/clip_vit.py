"""Class maps out of a frozen CLIP's vision transformer, without training: Grad-CAM (CLIP-ES) or dense (NACLIP)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.clip import FrozenImageTower, FrozenTextTower
from models.clip_vit_options import ClipVitOptions
from models.data.classes import normalize
from models.generators import AddedClass, MaskGenerator
from models.generators.clip_blocks import LastBlock, check_tower, dense_embeddings, embed_patches, run_blocks

_DENSE_SCALE = 40.0  # of cosines before the softmax, NACLIP's
_DEVIATION = 5.0  # of the neighborhood in the dense method, in patches
_MAPS_AT_ONCE = 16  # of (image, class) pairs whose gradients are in memory together
_OPPOSITE = torch.finfo(torch.float32).min  # a logit of what is left out; minus infinity would make NaN of none


@dataclass(frozen=True)
class BackgroundTexts:
    """Embeddings of M background texts, (M, D), and which of them is which of K classes, (K, M) bool."""

    embeddings: Tensor
    excluded: Tensor

    @classmethod
    def of(cls, names: Sequence[str], embeddings: Tensor, classes: Sequence[Sequence[str]]) -> BackgroundTexts:
        """Compare the texts' names with the classes', each of which has one or several."""
        return cls(embeddings, torch.tensor([_same(names, each) for each in classes], device=embeddings.device))


def text_gradients(embedding: Tensor, texts: Tensor, kept: Tensor, *, scale: Tensor, count: int) -> Tensor:
    """Return the gradients of the first ``count`` texts' probabilities with respect to embeddings, (B, count, D).

    The probabilities of T texts, (B, T, D), are the softmax of scale × cosine, (B, T), over those ``kept``, (B, T).
    """
    length = embedding.norm(dim=-1, keepdim=True)
    unit, texts = embedding / length, F.normalize(texts, dim=-1)
    logits = scale * (texts @ unit[:, :, None])[..., 0]
    shares = logits.masked_fill(~kept, _OPPOSITE).softmax(dim=-1)
    mean = shares[:, None] @ texts
    toward_unit = scale * shares[:, :count, None] * (texts[:, :count] - mean)
    along = (toward_unit @ unit[:, :, None]) * unit[:, None]
    gradients: Tensor = (toward_unit - along) / length[:, None]
    return gradients


class ClipVitGenerator(MaskGenerator):
    """A frozen CLIP image tower as mask generator; its head is one vector for each class, (K, D), at first its text.

    The classes of an image compete with each other and with the background: texts of common stuff, less what is a class
    of the image, and once (b) has learned them, the background prompts of the image's classes.

    Args:
        tower: CLIP's, with open_clip's VisionTransformer.
        head: embeddings of the class texts, (K, D).
        background: the texts of ``options.background_texts``.
        logit_scale: factor of CLIP's cosines.
        options: see ClipVitOptions.

    Raises:
        ValueError: if the tower is of another kind.
    """

    head: nn.Linear
    background_text: Tensor
    excluded: Tensor
    prompts: Tensor
    logit_scale: Tensor
    walk_from_boxes = True

    def __init__(
        self,
        tower: FrozenImageTower,
        head: Tensor,
        *,
        background: BackgroundTexts,
        logit_scale: float,
        options: ClipVitOptions,
    ) -> None:
        super().__init__()
        check_tower(tower.visual)
        self.backbone: Any = tower.visual
        self.head = nn.Linear(head.shape[1], len(head), bias=False)
        with torch.no_grad():
            self.head.weight.copy_(head)
        self.register_buffer("background_text", background.embeddings.clone())
        self.register_buffer("excluded", background.excluded.clone())
        self.register_buffer("prompts", torch.zeros_like(head))  # rows of 0: not learned
        self.register_buffer("logit_scale", torch.tensor(float(logit_scale)))
        self.set_normalization(mean=tower.mean.flatten().tolist(), std=tower.std.flatten().tolist())
        self.options = options

    def let_learn(self, trainable: str) -> None:
        """Make the head trainable; the argument is ignored, for CLIP stays frozen."""
        super().let_learn("head")

    def let_all_learn(self) -> None:
        """Make the head trainable, in evaluation mode."""
        super().let_learn("head")

    def use_prompts(self, prompts: Tensor) -> None:
        """Let the classes' background prompts, (K, D), stand beside or in place of the background texts."""
        self.prompts.copy_(prompts)

    def features(self, images: Tensor) -> Tensor:
        """Return what ``chosen_cams`` and ``affinity`` need, for images in [0, 1], (B, 3, H, W), without a gradient.

        One map, (B, 2 C + h w, h, w): the last block's input at the patch and, everywhere the same, at the class token;
        and the mean attention of each patch to the place.
        """
        mode = "bilinear" if self.options.method == "gradcam" else "bicubic"
        with torch.no_grad():
            tokens, grid = embed_patches(self.backbone, self.normalize(images), mode=mode)
            tokens, attention = run_blocks(self.backbone, tokens)
            patches = tokens[:, 1:].mT
            together = torch.cat([patches, tokens[:, :1].mT.expand_as(patches), attention], dim=1)
            return torch.unflatten(together, 2, grid)

    def cams(self, features: Tensor) -> Tensor:
        """Return CAMs in [0, 1], (B, K, h, w), as if all classes were in each image."""
        batch, classes = len(features), self.head.out_features
        pairs = torch.ones(batch, classes, device=features.device).nonzero()
        return torch.unflatten(self.chosen_cams(features, pairs), 0, (batch, classes))

    def cams_of(self, images: Tensor, present: Tensor) -> Tensor:
        """Map images to the CAMs of some classes alone; see MaskGenerator."""
        return self.chosen_cams(self.features(images), present)

    def chosen_cams(self, features: Tensor, present: Tensor, *, added: Sequence[AddedClass] = ()) -> Tensor:
        """Read CAMs in [0, 1] of some classes alone; see MaskGenerator. The classes of an image compete."""
        grid = features.shape[-2], features.shape[-1]
        if not len(present):
            return features.new_zeros((0, *grid)) + self.head.weight.sum() * 0
        tokens, _ = self._unpack(features)
        places = _places(present)
        count = int(places.max()) + 1
        with torch.autocast(features.device.type, enabled=False):
            texts, kept = self._texts(len(features), present, places, added)
        at_once = max(1, _MAPS_AT_ONCE // count)
        parts = zip(*(torch.split(each, at_once) for each in (tokens, texts, kept)), strict=True)
        read = self._gradcam if self.options.method == "gradcam" else self._dense
        maps = torch.cat([read(some, text, keep, count, grid) for some, text, keep in parts])
        return torch.unflatten(maps[present[:, 0], places], 1, grid)

    def pack_features(self, features: Tensor) -> Tensor:
        """Leave out the attention, and keep the class token once: one more row of the map, (B, C, h + 1, w)."""
        width = self.backbone.transformer.width
        return torch.cat([features[:, :width], features[:, width : 2 * width, :1]], dim=2)

    def unpack_features(self, packed: Tensor) -> Tensor:
        """Return features without attention, (B, 2 C, h, w), from ``pack_features``."""
        patches, first = packed[:, :, :-1], packed[:, :, -1:]
        return torch.cat([patches, first.expand_as(patches)], dim=1)

    def affinity(self, features: Tensor) -> Tensor:
        """Return the attention of patches to each other, (B, h, w, h, w), a mean over the last eight blocks."""
        _, attention = self._unpack(features)
        return torch.unflatten(attention, 1, features.shape[-2:])

    def evidence(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return CLIP's own logits, (B, K): scale × cosine of the mean patch's embedding with the head's vectors."""
        tokens, _ = self._unpack(self.features(images))
        embedding = F.normalize(LastBlock.run(self.backbone, tokens).embedding, dim=-1)
        return {"classify": self.logit_scale * F.linear(embedding, F.normalize(self.head.weight, dim=-1))}

    def head_rows(
        self, names: Sequence[str], class_text: Tensor, image: FrozenImageTower, text: FrozenTextTower
    ) -> Tensor:
        """Return the embeddings of the names in the generator's own template, (n, D)."""
        del class_text, image
        return text.embed_texts([self.options.caption(name) for name in names])

    def _unpack(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last block's input, (B, 1 + N, C), and the attention, (B, N, h, w), of ``features``."""
        width = self.backbone.transformer.width
        patches, first, attention = features.tensor_split([width, 2 * width], dim=1)
        tokens = torch.cat([first[:, :, :1, 0], patches.flatten(2)], dim=2).mT
        return tokens, attention

    def _texts(self, batch: int, present: Tensor, places: Tensor, added: Sequence[AddedClass]) -> tuple[Tensor, Tensor]:
        """Return each image's texts, (B, T, D), its own classes first, and which of them count, (B, T) bool."""
        image, channel = present.unbind(1)
        rows, prompts, excluded = self.head.weight, self.prompts, self.excluded
        if added:
            same = [_same(self.options.background_texts, [each.name]) for each in added]
            rows = torch.cat([rows, torch.stack([each.row for each in added])])
            prompts = torch.cat([prompts, prompts.new_zeros(len(added), prompts.shape[1])])
            excluded = torch.cat([excluded, torch.tensor(same, device=excluded.device)])
        shape = batch, int(places.max()) + 1
        own = rows.new_zeros((*shape, rows.shape[1])).index_put((image, places), rows[channel])
        is_own = excluded.new_zeros(shape).index_put((image, places), excluded.new_ones(()))
        of_own = prompts.new_zeros(own.shape).index_put((image, places), prompts[channel])
        has_prompt = of_own.any(dim=2) & (self.options.background != "texts")
        named = torch.zeros(batch, len(rows), device=rows.device).index_put((image, channel), rows.new_ones(()))
        stuff = (named @ excluded.float()) == 0
        if self.options.background == "prompts":
            stuff &= ~has_prompt.any(dim=1, keepdim=True)
        common = self.background_text.expand(batch, -1, -1)
        return torch.cat([own, of_own, common], dim=1), torch.cat([is_own, has_prompt, stuff], dim=1)

    def _gradcam(self, tokens: Tensor, texts: Tensor, kept: Tensor, count: int, grid: tuple[int, int]) -> Tensor:
        """Grad-CAM of the last block for the first ``count`` texts, (B, count, N), each in [0, 1]."""
        del grid
        last = LastBlock.run(self.backbone, tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            toward = text_gradients(last.embedding, texts, kept, scale=self.logit_scale, count=count)
        parts = torch.split(toward, _MAPS_AT_ONCE, dim=1)
        gradients = torch.cat([last.shift_gradients(each) for each in parts], dim=1)
        with torch.autocast(tokens.device.type, enabled=False):
            maps = (gradients @ last.activations.float().mT).relu()
        maps = maps - maps.amin(dim=2, keepdim=True)
        return maps / maps.amax(dim=2, keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)

    def _dense(self, tokens: Tensor, texts: Tensor, kept: Tensor, count: int, grid: tuple[int, int]) -> Tensor:
        """Each patch's probabilities of the first ``count`` texts, (B, count, N)."""
        embeddings = dense_embeddings(self.backbone, tokens, grid, deviation=_DEVIATION)
        with torch.autocast(tokens.device.type, enabled=False):
            logits = _DENSE_SCALE * (F.normalize(texts, dim=-1) @ embeddings.mT)
            return logits.masked_fill(~kept[:, :, None], _OPPOSITE).softmax(dim=1)[:, :count]


def _places(present: Tensor) -> Tensor:
    """Count each pair's predecessors of the same image, (N, 2) → (N,)."""
    image = present[:, 0]
    return (image[:, None] == image).tril(-1).sum(dim=1)


def _same(nouns: Sequence[str], names: Sequence[str]) -> list[bool]:
    """Whether each noun is one of the names of a class."""
    known = {normalize(name) for name in names}
    return [normalize(noun) in known for noun in nouns]
