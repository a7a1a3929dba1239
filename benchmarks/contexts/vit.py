"""Class maps out of a CLIP's own ViT in the world: its stages, and what each kind of background is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from benchmarks.contexts.experiment import MATCHED, REFINED, Changes, Experiment, Row
from benchmarks.contexts.world import BACKDROPS, CONTEXTS
from models.build import build_generator
from models.generators import MaskGenerator
from models.training.prompts import learned_prompts
from models.training.run import Run, supervision

NAME = "CLIP's own ViT, Grad-CAM"
# This CLIP knows the world's nouns alone, in this template. Backdrops are what a list of common stuff may miss least.
GENERATOR = {"kind": "clip_vit", "template": "a photo of {}.", "background_texts": BACKDROPS}
# One vector of each class takes larger steps than a network.
CHANGES: Changes = {
    "generator": GENERATOR,
    "pretrain_generator": None,
    "train_generator": {"learning_rate": 5e-3},
    "refine_generator": {"learning_rate": 5e-3, "refinement_weight": 0.2},
}
TEXTS = {"backdrops": BACKDROPS, "backdrops and contexts": (*BACKDROPS, *CONTEXTS)}
# What competes with a scene's labels, and which texts stand for "texts".
BACKGROUNDS = (
    ("texts", "backdrops"), ("prompts", "backdrops"), ("both", "backdrops"),
    ("texts", "backdrops and contexts"), ("both", "backdrops and contexts"),
)  # fmt: skip


def compare_vit(experiment: Experiment) -> tuple[str, Sequence[Row]]:
    """Train and measure the stages of one seed; the base is the CLIP itself, whose head is the class texts."""
    vit = _with_vit(experiment)
    base, learned = vit.changed({"train_generator": {"epochs": 0}}).run("base-vit"), vit.run("learned-vit")
    vit.match(base)
    vit.match(learned)
    vit.refine(learned)
    return NAME, (
        Row("base", vit.scores(base, MATCHED)),
        Row("(a)", vit.scores(learned, MATCHED)),
        Row("(c)", vit.scores(learned, REFINED), vit.found(learned)),
    )


def compare_backgrounds(experiment: Experiment) -> list[Row]:
    """Measure the CLIP itself with each background, the prompts being those that ``compare_vit`` has learned."""
    vit = _with_vit(experiment)
    learned = vit.run("learned-vit")
    prompts = learned_prompts(learned)["embeddings"]

    def load(run: Run) -> MaskGenerator:
        generator = build_generator(run.config, *supervision(run), device=run.device, classes=run.classes)
        generator.use_prompts(prompts)
        return generator

    rows = []
    for number, (background, texts) in enumerate(BACKGROUNDS):
        generator = {**GENERATOR, "background": background, "background_texts": TEXTS[texts]}
        run = vit.changed({"generator": generator}).run("background-vit")
        scores = vit.measured(run.work / f"scores{number}.json", partial(load, run))
        rows.append(Row(background if background == "prompts" else f"{background}: {texts}", scores))
    return rows


def _with_vit(experiment: Experiment) -> Experiment:
    vit = replace(experiment, tower="vit").changed(CHANGES)
    vit.prepare()
    return vit
