"""Print how well a CLIP finds the labels of photos, and how well its text tower knows its teacher.

    python -m benchmarks.offline_clip.evaluate --clip build/offline-clip --data PHOTOS

The data folder holds ``images/``, ``labels.csv`` (image, labels separated by semicolons) and
``classes.txt`` ("index name" a line). The labels are image-level; the photos were trained on by
no part of the offline CLIP.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import open_clip
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from benchmarks.offline_clip.anchor import anchor_direction
from benchmarks.offline_clip.build import HELD_OUT, LONG_TEXTS, Examination
from benchmarks.offline_clip.image_tower import center
from benchmarks.offline_clip.nouns import installed_encoder, read_wordnet
from benchmarks.offline_clip.text_tower import (
    CLASS_NAMES,
    SENTENCE,
    TEMPLATES,
    Encoder,
    full_length_encoder,
    imagenet_names,
    long_texts,
    make_vocabulary,
)

CLASS_TEXT = "a photo of {}."
"""The method's class text."""


@dataclass(frozen=True)
class Photos:
    """Labeled photos: their ``paths``, the ``classes``, and ``labels`` (B, K), multi-hot."""

    paths: list[Path]
    classes: list[str]
    labels: Tensor


def read_photos(folder: Path) -> Photos:
    """Read the photos that have a label.

    Raises:
        ValueError: if a label is not in ``classes.txt``.
    """
    lines = (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
    classes = [line.split(" ", 1)[1] for line in lines]
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["labels"]]
    labels = torch.zeros(len(rows), len(classes))
    for number, row in enumerate(rows):
        for label in row["labels"].split(";"):
            if label not in classes:
                raise ValueError(f"expected a label of classes.txt, got {label!r}")
            labels[number, classes.index(label)] = 1
    return Photos([folder / "images" / row["image"] for row in rows], classes, labels)


def average_precision(scores: Tensor, relevant: Tensor) -> float:
    """Average the precision at every relevant item of a ranking.

    Args:
        scores: (B,), higher is ranked earlier.
        relevant: (B,), 1 or 0, at least one 1.

    Returns:
        In (0, 1].
    """
    ranked = relevant[scores.argsort(descending=True, stable=True)]
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)
    return float(precision[ranked > 0].mean())


def class_map(scores: Tensor, labels: Tensor) -> float:
    """Average over the classes that occur: how well photos (B) are ranked by each class's score.

    Args:
        scores: (B, K).
        labels: (B, K), multi-hot.
    """
    occurring = labels.any(dim=0).nonzero().flatten().tolist()
    values = [average_precision(scores[:, k], labels[:, k]) for k in occurring]
    return sum(values) / len(values)


def chance_map(labels: Tensor, *, trials: int, seed: int) -> float:
    """Estimate the class mAP of random scores."""
    generator = torch.Generator().manual_seed(seed)
    values = [class_map(torch.rand(labels.shape, generator=generator), labels) for _ in range(trials)]
    return sum(values) / trials


def text_examinations(wordnet: Path, *, seed: int) -> list[Examination]:
    """Prepare the held-out nouns and long texts that a build with this seed did not teach."""
    teacher = installed_encoder()
    mean = teacher.embed([SENTENCE.format(name) for name in imagenet_names()]).mean(dim=0)
    vocabulary = make_vocabulary(read_wordnet(wordnet), held_out=HELD_OUT, seed=seed)
    late = long_texts(vocabulary.core, LONG_TEXTS + HELD_OUT, seed=1)[LONG_TEXTS:]
    examinations = [Examination("held-out long texts", late, center(teacher.embed(late), mean))]
    for name, nouns in (
        ("held-out nouns", vocabulary.held_out),
        ("COCO class names", CLASS_NAMES[:80]),
    ):
        targets = teacher.embed([SENTENCE.format(noun) for noun in nouns])
        texts = [TEMPLATES[0].format(noun) for noun in nouns]
        examinations.append(Examination(name, texts, center(targets, mean)))
    return examinations


def without(direction: Tensor | None, encode: Encoder) -> Encoder:
    """Take a unit direction (D,), an anchor's, off all embeddings before they are examined."""
    if direction is None:
        return encode

    def encode_rest(texts: Sequence[str]) -> Tensor:
        embeddings = encode(texts)
        return embeddings - torch.outer(embeddings @ direction, direction)

    return encode_rest


def main(
    clip: Annotated[Path, typer.Option(help="Folder of the offline CLIP.")],
    data: Annotated[Path, typer.Option(help="Folder of labeled photos.")],
    wordnet: Annotated[Path, typer.Option(help="Folder of WordNet's database files.")] = Path("/usr/share/wordnet"),
    seed: Annotated[int, typer.Option(help="The seed of the build.")] = 0,
    threads: Annotated[int, typer.Option(help="Processor threads.")] = 2,
) -> None:
    """Print the figures of an offline CLIP."""
    torch.set_num_threads(threads)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    encode_text = full_length_encoder(model.eval(), open_clip.get_tokenizer(f"local-dir:{clip}"))
    photos = read_photos(data)
    texts = functional.normalize(encode_text([CLASS_TEXT.format(name) for name in photos.classes]), dim=-1)
    embeddings = []
    with torch.inference_mode():
        for path in track(photos.paths, description="photos"):
            with Image.open(path) as photo:
                embeddings.append(model.encode_image(preprocess(photo)[None], normalize=True)[0])
    scores = torch.stack(embeddings) @ texts.T
    table = Table("figure", "value", title=f"{len(photos.paths)} photos, {len(texts)} class texts")
    table.add_row("class mAP", f"{class_map(scores, photos.labels):.3f}")
    chance = chance_map(photos.labels, trials=20, seed=seed)
    table.add_row("class mAP by chance", f"{chance:.3f}")
    table.add_row("photo mAP (classes ranked)", f"{class_map(scores.T, photos.labels.T):.3f}")
    present = scores[photos.labels > 0]
    table.add_row("mean cosine, class present", f"{present.mean():.3f}")
    table.add_row("mean cosine, class absent", f"{scores[photos.labels == 0].mean():.3f}")
    clamped = (present < 1e-4).float().mean()
    table.add_row("share of present cosines below 1e-4", f"{clamped:.3f}")
    encode_text = without(anchor_direction(model), encode_text)
    for exam in text_examinations(wordnet, seed=seed):
        table.add_row(f"cosine to teacher, {exam.name}", f"{exam.mark(encode_text):.3f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
