"""Print how well a CLIP finds the labels of photos.

    python -m benchmarks.offline_clip.evaluate --clip build/offline-clip --data PHOTOS

The data folder holds ``images/``, ``labels.csv`` (image, labels separated by semicolons) and
``classes.txt`` ("index name" a line). The labels are image-level; the photos were trained on by
no part of the offline CLIP.
"""

from __future__ import annotations

import csv
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

import models.backbones  # noqa: F401 (registers a network that a CLIP may name)
from benchmarks.offline_clip.text_tower import full_length_encoder

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


def main(
    clip: Annotated[Path, typer.Option(help="Folder of the offline CLIP.")],
    data: Annotated[Path, typer.Option(help="Folder of labeled photos.")],
    seed: Annotated[int, typer.Option(help="Seed of the random rankings.")] = 0,
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
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
