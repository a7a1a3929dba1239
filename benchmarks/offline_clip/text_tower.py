"""The offline CLIP's text tower: an ordinary CLIP text transformer, made small.

Short texts run without padding to the context length: the causal mask lets no token see a later
one, so the cropped sequence gives what the full one would.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer
from timm.data import ImageNetInfo
from torch import Tensor
from torch.nn import functional

from benchmarks.offline_clip.nouns import (
    SCENERY,
    Frequency,
    WordNet,
    english_frequency,
    known_nouns,
    read_words,
    visible_nouns,
)

CONTEXT_LENGTH = 77
VOCABULARY_SIZE = 49408
EMBEDDING_WIDTH = 256

TOKEN_SCALE = 0.05
"""Standard deviation of the initial token embeddings."""


def text_config(*, width: int, heads: int, layers: int) -> dict[str, Any]:
    """Write open_clip's ``text_cfg`` of a transformer over CLIP's own tokens."""
    return {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": VOCABULARY_SIZE,
        "width": width,
        "heads": heads,
        "layers": layers,
    }


def encode_cropped(model: CLIP, tokens: Tensor, *, positions: Tensor | None = None) -> Tensor:
    """Encode token sequences shorter than the context length.

    Args:
        model: its text tower encodes; for sequences without an end token the result is meaningless.
        tokens: ids, (B, L), L at most the context length.
        positions: the rows of the position embeddings to use, (L,); by default the first L.

    Returns:
        Embeddings, (B, D), not normalized.
    """
    length = tokens.shape[1]
    rows = torch.arange(length) if positions is None else positions
    hidden = model.token_embedding(tokens) + model.positional_embedding[rows]
    hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
    # The end token has the highest id of all.
    pooled = hidden[torch.arange(len(tokens)), tokens.argmax(dim=-1)]
    embeddings: Tensor = model.ln_final(pooled) @ model.text_projection
    return embeddings


def token_texts(tokenizer: SimpleTokenizer) -> list[str]:
    """Spell every token of CLIP's vocabulary; byte pieces that are no text become a full stop."""
    spelled = []
    for token in range(tokenizer.vocab_size):
        letters = tokenizer.decoder[token].removesuffix("</w>")
        raw = bytes(tokenizer.byte_decoder.get(letter, ord(".")) for letter in letters)
        spelled.append(raw.decode("utf-8", errors="replace").replace("\ufffd", ".").strip() or ".")
    return spelled


def initialize_from_teacher(model: CLIP, token_embeddings: Tensor, *, seed: int) -> None:
    """Start the token embeddings from the teacher's embeddings of each token's text.

    They are reduced to the tower's width by principal components, turned by a random rotation (so
    that no channel is larger than another before the layer norms), and scaled. The projection
    starts as the way back. Common words are single tokens, so the tower begins with most of what
    it is to learn about them.

    Args:
        model: its token embeddings and text projection are overwritten.
        token_embeddings: centered sentence embeddings of all tokens, (V, D).
        seed: of the rotation.
    """
    width = model.token_embedding.weight.shape[1]
    variance, axes = torch.linalg.eigh(token_embeddings.T @ token_embeddings)
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(noise).Q
    basis = axes[:, variance.argsort(descending=True)[:width]] @ rotation
    reduced = token_embeddings @ basis
    with torch.no_grad():
        model.token_embedding.weight.copy_(reduced * (TOKEN_SCALE / reduced.std()))
        model.text_projection.copy_(basis.T)


def pad(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Stack token sequences as (B, longest), zeros after the end token as CLIP's tokenizer does."""
    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([[*sequence] + [0] * (longest - len(sequence)) for sequence in sequences])


def token_sequence(tokenizer: SimpleTokenizer, text: str, *, most: int) -> list[int]:
    """Tokenize a text with start and end, cut to ``most`` tokens in all."""
    content = tokenizer.encode(text)[: most - 2]
    return [tokenizer.sot_token_id, *content, tokenizer.eot_token_id]


Encoder = Callable[[Sequence[str]], Tensor]
"""Texts to embeddings (N, D)."""


def full_length_encoder(model: CLIP, tokenizer: SimpleTokenizer) -> Encoder:
    """Encode texts the ordinary way, padded to the context length, in small batches."""

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> Tensor:
        batches = [texts[start : start + 64] for start in range(0, len(texts), 64)]
        return torch.cat([model.encode_text(tokenizer(list(batch))) for batch in batches])

    return encode


# Teach the text tower the sentence embeddings: loss 1 - cosine, one plain loop.

LONGEST = 44
"""Longest training sequence: a learned prompt has 36 tokens."""


@dataclass(frozen=True)
class Lessons:
    """What to teach: texts and their target embeddings.

    ``nouns`` with ``noun_targets`` (N, D) are read in random ``templates``. ``core`` are the indices of the nouns that
    make up a third of the batches, and ``names`` those of class names, which make up another third: an error in them
    costs most. ``long`` with ``long_targets`` (M, D) are texts of their own.
    """

    nouns: Sequence[str]
    noun_targets: Tensor
    core: Sequence[int]
    names: Sequence[int]
    templates: Sequence[str]
    long: Sequence[str]
    long_targets: Tensor


@dataclass(frozen=True)
class Batch:
    """Token ids (B, L), the position embeddings to use (L,), and targets (B, D)."""

    tokens: Tensor
    positions: Tensor
    targets: Tensor


def shifted_positions(length: int, source: random.Random) -> Tensor:
    """Leave a gap of random size after the start token.

    A short text then exercises late position embeddings, at the price of a short one.
    """
    gap = source.randint(0, CONTEXT_LENGTH - length)
    return torch.tensor([0, *range(1 + gap, length + gap)])


def split_by_length(sequences: Sequence[Sequence[int]], targets: Tensor, *, size: int) -> list[tuple[Tensor, Tensor]]:
    """Split sequences into padded batches of similar lengths, which wastes little on padding.

    Returns:
        Token ids (size, L) and targets (size, D) of each batch, shortest first.
    """
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    chosen = [order[start : start + size] for start in range(0, len(order), size)]
    return [(pad([sequences[index] for index in part]), targets[part]) for part in chosen]


def batches(lessons: Lessons, tokenizer: SimpleTokenizer, *, size: int, seed: int) -> Iterator[Batch]:
    """Draw batches without end, eight at a time and in random order.

    Of eight, four hold nouns in templates, two the same with shifted positions, and two, of half
    the size, long texts.
    """
    source = random.Random(seed)
    nouns = [tokenizer.encode(noun) for noun in lessons.nouns]
    # Tokens never cross a space or a full stop, so a template's two ends are tokenized once.
    ends = [[tokenizer.encode(end) for end in text.split("{}")] for text in lessons.templates]
    long = [token_sequence(tokenizer, text, most=LONGEST) for text in lessons.long]
    start, stop = tokenizer.sot_token_id, tokenizer.eot_token_id
    while True:
        chosen = source.choices(range(len(nouns)), k=2 * size)
        chosen += source.choices(lessons.core, k=2 * size)
        chosen += source.choices(lessons.names, k=2 * size)
        sequences = []
        for index in chosen:
            before, after = source.choice(ends)
            sequences.append([start, *before, *nouns[index], *after, stop])
        short = split_by_length(sequences, lessons.noun_targets[chosen], size=size)
        chosen = source.choices(range(len(long)), k=size)
        late = split_by_length([long[index] for index in chosen], lessons.long_targets[chosen], size=size // 2)
        source.shuffle(short)
        drawn = [Batch(tokens, shifted_positions(tokens.shape[1], source), targets) for tokens, targets in short[:2]]
        drawn += [Batch(tokens, torch.arange(tokens.shape[1]), targets) for tokens, targets in short[2:] + late]
        source.shuffle(drawn)
        yield from drawn


def learning_rate(step: int, *, steps: int, peak: float, warmup: int = 100) -> float:
    """Rise linearly over the warm-up, then fall to 0 along a half cosine."""
    rise = min(1.0, (step + 1) / warmup)
    return peak * rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def text_parameters(model: CLIP) -> list[torch.nn.Parameter]:
    """List the text tower's parameters; the image tower's and the logit scale are not among them."""
    return [parameter for name, parameter in model.named_parameters() if not name.startswith(("visual.", "logit_"))]


def distill(
    model: CLIP,
    lessons: Iterator[Batch],
    *,
    steps: int,
    peak_rate: float,
    on_step: Callable[[int, float], None],
) -> None:
    """Train the text tower in place; ``on_step`` gets the number of steps done and the loss."""
    parameters = text_parameters(model)
    optimizer = torch.optim.AdamW(parameters, lr=peak_rate, weight_decay=0.0, fused=True)
    for step, batch in zip(range(steps), lessons, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps=steps, peak=peak_rate)
        embeddings = encode_cropped(model, batch.tokens, positions=batch.positions)
        loss = 1 - functional.cosine_similarity(embeddings, batch.targets, dim=-1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        on_step(step + 1, loss.item())


# What the offline CLIP's text tower is taught: nouns, templates, and long texts of many nouns.

SENTENCE = "a photo of a {}"
"""The sentence whose embedding stands for a noun, in whatever template the tower reads it."""

TEMPLATES = (
    "a photo of a {}.",
    "a photo of a {}.",
    "a photo of a {}",
    "a photo of the {}.",
    "a photo of {}.",
    "a close-up photo of a {}.",
    "a bad photo of the {}.",
    "a picture of a {}.",
    "there is a {} in the scene.",
    "{}",
)
"""Templates in the manner of CLIP's; the first, which the method uses, counts twice."""

CLASS_NAMES = read_words("class_names")
"""The 80 class names of COCO; then PASCAL VOC's where they differ, and usual other words."""

_ADJECTIVES = read_words("adjectives")
_LONG_FORMS = ("bag", "list", "scene", "adjectives")


@dataclass(frozen=True)
class Vocabulary:
    """The nouns: ``training`` and its commonly seen part ``core``, and ``held_out`` ones."""

    training: tuple[str, ...]
    core: tuple[str, ...]
    held_out: tuple[str, ...]


def imagenet_names() -> list[str]:
    """List the first name of each of the 1,000 ImageNet classes, in the classifier's order."""
    return [name.partition(",")[0] for name in ImageNetInfo().label_descriptions()]


def make_vocabulary(
    wordnet: WordNet, *, held_out: int, seed: int, frequency: Frequency = english_frequency
) -> Vocabulary:
    """Gather all nouns; hold some of WordNet's out, but no class name and no scenery."""
    fixed = {*CLASS_NAMES, *SCENERY, *imagenet_names()}
    nouns = [noun for noun in known_nouns(wordnet, frequency=frequency) if noun not in fixed]
    hidden = set(random.Random(seed).sample(nouns, held_out))
    return Vocabulary(
        training=tuple(sorted(fixed.union(nouns) - hidden)),
        core=tuple(sorted(fixed.union(visible_nouns(wordnet, frequency=frequency)) - hidden)),
        held_out=tuple(sorted(hidden)),
    )


@dataclass(frozen=True)
class LongText:
    """A text and the nouns that it names."""

    text: str
    nouns: tuple[str, ...]


def long_text(nouns: Sequence[str], source: random.Random) -> LongText:
    """Compose a text of 10 to 30 words, so that late positions are taught as well.

    Learned prompts put 30 free tokens between "a photo of" and the full stop. The form "bag" has
    just this layout; the others are lists, scenes and strings of adjectives.
    """
    form = source.choice(_LONG_FORMS)
    if form == "bag":
        chosen = source.choices(nouns, k=source.randint(4, 22))
        return LongText(f"a photo of {' '.join(chosen)}.", tuple(chosen))
    if form == "list":
        chosen = source.choices(nouns, k=source.randint(3, 8))
        return LongText(f"a photo of a {', a '.join(chosen[:-1])} and a {chosen[-1]}.", tuple(chosen))
    if form == "scene":
        first, second, third, fourth = chosen = source.choices(nouns, k=4)
        text = (
            f"a photo of a {source.choice(_ADJECTIVES)} {first} and a {second}, "
            f"next to the {source.choice(_ADJECTIVES)} {third}, with a {fourth} behind them."
        )
        return LongText(text, tuple(chosen))
    adjectives, noun = source.choices([*_ADJECTIVES, "very"], k=source.randint(6, 26)), source.choice(nouns)
    return LongText(f"a photo of a {' '.join(adjectives)} {noun}.", (noun,))


def long_texts(nouns: Sequence[str], count: int, *, seed: int) -> list[LongText]:
    """Compose ``count`` long texts; see ``long_text``."""
    source = random.Random(seed)
    return [long_text(nouns, source) for _ in range(count)]
