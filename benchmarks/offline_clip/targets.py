"""What the text tower is taught: the embedding of a noun is the mixture of ImageNet classifiers that tells it best.

Half of a mixture are the classes that WordNet lists as kinds of the noun (118 breeds for "dog"), all with the same
weight. The other half, or all if there is no such class, are the classes whose names mean nearly the same to a sentence
encoder: a softmax, sharp enough that few of a thousand count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from timm.data import ImageNetInfo
from torch import Tensor
from torch.nn import functional

from benchmarks.offline_clip.nouns import WordNet

TEMPERATURE = 0.05
KINDS_SHARE = 0.5


def imagenet_synsets() -> list[str]:
    """List the WordNet 3.0 offsets of the 1,000 ImageNet classes, in the classifier's order."""
    info = ImageNetInfo()
    return [info.index_to_label_name(index)[1:] for index in range(info.num_classes())]


def kinds(wordnet: WordNet, classes: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """Find which classes, given by synset offset, are kinds of each synset; a class is one of its own.

    Returns:
        Synset offset to the numbers of the classes; synsets without any are left out.
    """
    found: dict[str, list[int]] = {}
    for number, offset in enumerate(classes):
        above, seen = [offset], set()
        while above:
            at = above.pop()
            if at in seen or at not in wordnet.synsets:
                continue
            seen.add(at)
            found.setdefault(at, []).append(number)
            synset = wordnet.synsets[at]
            above += [*synset.parents, *synset.instance_of]
    return {offset: tuple(numbers) for offset, numbers in found.items()}


def center(embeddings: Tensor, mean: Tensor) -> Tensor:
    """Subtract the mean of the class sentences and normalize (…, D) to unit length.

    All sentences "a photo of a …" point in much the same direction; what tells them apart is the rest.
    """
    return functional.normalize(embeddings - mean, dim=-1)


@dataclass(frozen=True)
class Targets:
    """The text targets of nouns, from sentence embeddings, WordNet and projected classifiers."""

    class_sentences: Tensor  # of "a photo of a {class}", (C, S)
    class_rows: Tensor  # centered classifiers times the projection, (C, D)
    wordnet: WordNet
    kinds: Mapping[str, tuple[int, ...]]

    def mixture(self, nouns: Sequence[str], sentences: Tensor) -> Tensor:
        """Return the shares of the classes in each noun, (N, C), rows of sum 1; ``sentences`` are (N, S)."""
        mean = self.class_sentences.mean(dim=0)
        similarity = center(sentences, mean) @ center(self.class_sentences, mean).T
        shares = (similarity / TEMPERATURE).softmax(dim=-1)
        for number, noun in enumerate(nouns):
            first = self.wordnet.senses.get(noun, ("",))[0]
            known = list(self.kinds.get(first, ()))
            if known:
                shares[number] *= 1 - KINDS_SHARE
                shares[number, known] += KINDS_SHARE / len(known)
        return shares

    def embed(self, nouns: Sequence[str], sentences: Tensor) -> Tensor:
        """Return the targets of nouns, (N, D), L2-normalized, given the embeddings of their sentences, (N, S)."""
        parts = [
            self.mixture(nouns[at : at + 4096], sentences[at : at + 4096]) @ self.class_rows
            for at in range(0, len(nouns), 4096)
        ]
        return functional.normalize(torch.cat(parts), dim=-1)
