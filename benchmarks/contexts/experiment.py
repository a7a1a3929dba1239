"""One seed of the world: scenes, CLIP, base network and every variant, each kept on disk and made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.contexts.tiny_clip import EPOCHS, Tower, load_captioned, train_clip
from benchmarks.contexts.world import (
    CLASSES,
    CONTEXTS,
    NOUNS,
    Sizes,
    read_captions,
    read_samples,
    read_truth,
    write_dataset,
)
from benchmarks.offline_clip.build import WEIGHTS_NAME
from models.build import build_prompts, load_generator
from models.clip import FrozenClip
from models.config import ClipConfig, Config, InferenceConfig
from models.data.classes import Sample
from models.data.images import read_image
from models.evaluation.metrics import sweep_soft_maps
from models.generators import MaskGenerator
from models.inference.masks import SoftMaps
from models.inference.multi_scale import multi_scale_cams
from models.io import to_json, write_atomically
from models.prompts import nearest_nouns
from models.training import generator, prompts
from models.training.generator import pretrain_generator
from models.training.loop import Step
from models.training.run import Run, start_run, supervision

# How good CAMs are on held-out scenes, and which nouns prompts have learned.

THRESHOLDS = [percent / 100 for percent in range(5, 96)]


@dataclass(frozen=True)
class Score:
    """Mean IoU over the objects and the background, in [0, 1].

    Attributes:
        fixed: at the configuration's threshold.
        oracle: at the threshold that the ground truth likes best.
        threshold: that one.
    """

    fixed: float
    oracle: float
    threshold: float


@torch.inference_mode()
def measure(generator: MaskGenerator, data: Path, split: str, inference: InferenceConfig) -> Score:
    """Compare the bare CAMs of the labeled objects with the truth."""
    threshold = inference.background_threshold
    sweep = sweep_soft_maps(
        _soft_maps(generator, data, split, inference),
        CLASSES,
        thresholds=sorted({threshold, *THRESHOLDS}),
        min_pixels=0,
    )
    best, oracle = sweep.best
    fixed = sweep.reports[sweep.thresholds.index(threshold)]
    return Score(fixed.mean_iou, oracle.mean_iou, best)


@torch.inference_mode()
def cams_of(generator: MaskGenerator, sample: Sample, inference: InferenceConfig) -> Tensor:
    """Return the CAMs of a scene's labeled objects, in [0, 1], (n, S, S)."""
    pixels = torch.from_numpy(read_image(sample.path.read_bytes()).pixels)
    return multi_scale_cams(
        generator.cams_of,
        pixels.permute(2, 0, 1)[None].float() / 255,
        torch.tensor([(0, channel) for channel in sample.channels]),
        scales=inference.scales,
        flip=inference.flip,
    )


def _soft_maps(
    generator: MaskGenerator, data: Path, split: str, inference: InferenceConfig
) -> Iterator[tuple[Tensor, SoftMaps]]:
    for sample in read_samples(data, split):
        truth = read_truth(data, sample.stem)
        cams = cams_of(generator, sample, inference)
        shown = [CLASSES.classes[channel] for channel in sample.channels]
        yield (
            torch.from_numpy(truth),
            SoftMaps(
                cams.half().numpy(),
                np.array([each.index for each in shown]),
                tuple(each.name for each in shown),
                (truth.shape[0], truth.shape[1]),
            ),
        )


def nearest(clip: FrozenClip, prompts: Tensor) -> list[str]:
    """Return the world's noun that is nearest to each class's background prompt."""
    found = nearest_nouns(prompts, NOUNS, clip.embed_classes(NOUNS), count=1)
    return [nouns[0][0] for nouns in found]


def contexts_found(clip: FrozenClip, prompts: Tensor) -> int:
    """Count the classes whose nearest noun is their own context."""
    return sum(noun == context for noun, context in zip(nearest(clip, prompts), CONTEXTS, strict=True))


BASE, MATCHED, REFINED = "pretrain-generator", "train-generator", "refine-generator"
HELD_OUT = ("shuffled", "usual")
_WEIGHTS = "generator.safetensors"

# A prompt's embeddings, (K, D), in place of learned ones.
Substitute = Callable[[Config, FrozenClip], Tensor]
# Values that differ from a configuration's, by section; of the generator all that are not defaults.
Changes = Mapping[str, Mapping[str, object] | None]


@dataclass(frozen=True)
class Experiment:
    """One seed of the world.

    Attributes:
        folder: for everything that is made.
        config: of the stages; its seed is that of the world, and CLIP is set here.
        sizes: scenes of each split.
        clip_epochs: over the captions; None for the tower's own.
        say: called with what begins.
        tower: of its CLIP's images.
    """

    folder: Path
    config: Config
    sizes: Sizes = field(default_factory=Sizes)
    clip_epochs: int | None = None
    say: Callable[[str], None] = print
    tower: Tower = "cnn"

    @property
    def data(self) -> Path:
        """The data set's folder."""
        return self.folder / "data"

    @property
    def clip(self) -> Path:
        """The CLIP's folder."""
        return self.folder / ("clip" if self.tower == "cnn" else f"clip-{self.tower}")

    def prepare(self) -> None:
        """Make the scenes and the CLIP, unless they are there."""
        write_dataset(self.data, self.sizes, seed=self.config.seed)
        if (self.clip / WEIGHTS_NAME).is_file():
            return
        self.say(self.clip.name)
        train_clip(
            load_captioned(read_captions(self.data, "captions")),
            self.clip,
            tower=self.tower,
            epochs=self.clip_epochs or EPOCHS[self.tower],
            seed=self.config.seed,
        )

    def changed(self, changes: Changes) -> Experiment:
        """Return the experiment with changes of its configuration."""
        values = self.config.model_dump()
        for section, changed in changes.items():
            # Another kind of generator has other values; a section that is None is left out.
            start = values[section] if section != "generator" else {}
            values[section] = None if changed is None else {**start, **changed}
        return replace(self, config=Config.model_validate(values))

    def run(self, name: str, *, base: Run | None = None) -> Run:
        """Open the work directory of a variant; its generator starts as the base leaves it, if there is one."""
        clip = ClipConfig(model=f"local-dir:{self.clip}", pretrained=None)
        config = (base.config if base else self.config).model_copy(update={"clip": clip})
        if base is not None:
            weights = str(base.existing(BASE, _WEIGHTS))
            generator = config.generator.model_copy(update={"weights": weights})
            changes = {"generator": generator, "pretrain_generator": None}
            config = config.model_copy(update=changes)
        return start_run(
            config,
            CLASSES,
            self.folder / name,
            device=torch.device("cpu"),
        )

    def pretrain(self, name: str, changes: Changes | None = None) -> Run:
        """Make the base network, and open a run whose configuration has the changes."""
        run = self.changed(changes or {}).run(name)
        self._once(run, BASE, _WEIGHTS, pretrain_generator)
        return run

    def match(self, run: Run) -> None:
        """Stage (a)."""
        self._once(run, MATCHED, _WEIGHTS, generator.train_generator)

    def refine(self, run: Run, substitute: Substitute | None = None) -> None:
        """Stages (b) and (c); a substitute stands for what (b) would learn."""
        name = "prompts.safetensors"
        if substitute is None:
            self._once(run, "learn-prompts", name, prompts.learn_prompts)
        elif not (run.work / "learn-prompts" / name).is_file():
            clip, text = supervision(run)
            embeddings = substitute(run.config, clip)
            # Nothing reads the parameters of a prompt that was not learned.
            nothing = torch.zeros(len(CLASSES), 1, clip.prompt_width)
            tensors = {"embeddings": embeddings, "context": nothing, "class_text": text}
            run.save("learn-prompts", name, tensors)
        self._once(run, REFINED, _WEIGHTS, generator.refine_generator)

    def generator(self, run: Run, stage: str) -> MaskGenerator:
        """Load the generator that a stage left."""
        clip, text = supervision(run)
        weights = run.existing(stage, _WEIGHTS)
        return load_generator(run.config, clip, text, weights, device=run.device)

    def scores(self, run: Run, stage: str) -> dict[str, Score]:
        """Measure the generator that a stage left, on both held-out splits."""
        return self.measured(run.work / stage / "scores.json", lambda: self.generator(run, stage))

    def measured(self, path: Path, load: Callable[[], MaskGenerator]) -> dict[str, Score]:
        """Measure a generator on both held-out splits, unless its scores are in a file."""
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            return {split: Score(**values) for split, values in stored.items()}
        generator = load()
        found = {split: measure(generator, self.data, split, self.config.inference) for split in HELD_OUT}
        content = to_json({split: asdict(score) for split, score in found.items()})
        write_atomically(path, content.encode())
        return found

    def found(self, run: Run) -> int:
        """Count the classes whose learned prompt is nearest to their own context."""
        clip, _ = supervision(run)
        return contexts_found(clip, prompts.learned_prompts(run)["embeddings"])

    def _once(self, run: Run, stage: str, result: str, start: Callable[..., Path]) -> None:
        if (run.work / stage / result).is_file():
            return
        self.say(f"{run.work.name}: {stage}")
        start(run, read_samples(self.data, "train"), _quietly)


def random_prompts(config: Config, clip: FrozenClip) -> Tensor:
    """Return the embeddings of prompts as stage (b) starts them."""
    prompts = build_prompts(config, clip, CLASSES.names)
    with torch.no_grad():
        return clip.embed_prompts(prompts.context)


def written_contexts(config: Config, clip: FrozenClip) -> Tensor:
    """Return the embeddings of texts that name each class's context."""
    return clip.embed_classes(CONTEXTS)


def _quietly(step: Step) -> None:
    """Say nothing."""


# The ablation of one seed, and the same stages on other generators.

# What differs from the configuration; another generator is one more row.
GENERATORS: dict[str, Changes] = {
    "CNN CAM, test_resnet": {},
    "CNN CAM, test_efficientnet": {
        "generator": {
            "kind": "cnn", "backbone": "test_efficientnet", "pretrained": False,
            "output_stride": 8, "level": -2,
        },
    },
    # From scratch it needs more epochs; and the trunk's maps are so faint that 0.1 in min-max would leave no masks.
    "WeakTr, width 96, depth 3": {
        "generator": {
            "kind": "weaktr", "native_size": 96, "patch": 8, "width": 96, "depth": 3, "heads": 3,
            "reduction": 1,
        },
        "pretrain_generator": {"epochs": 40, "learning_rate": 1e-3},
        "train_generator": {"epsilon": 1e-4, "learning_rate": 2e-3},
        "refine_generator": {
            "epsilon": 1e-4, "learning_rate": 2e-3, "refinement_weight": 0.7,
        },
    },
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A variant and what it is worth.

    Attributes:
        name: of the variant.
        scores: by held-out split.
        found: how many prompts are nearest to their own context; None where none is learned.
    """

    name: str
    scores: Mapping[str, Score]
    found: int | None = None


def ablate(experiment: Experiment) -> list[Row]:
    """Train and measure every variant of one seed."""
    base = experiment.pretrain("base")
    learned, random, written = (experiment.run(name, base=base) for name in ("learned", "random", "written"))
    experiment.match(learned)
    experiment.refine(learned)
    experiment.refine(random, random_prompts)
    experiment.refine(written, written_contexts)
    return [
        Row("base CAM network", experiment.scores(base, BASE)),
        Row("(a)", experiment.scores(learned, MATCHED)),
        Row("(c), random prompts", experiment.scores(random, REFINED)),
        Row("(c), contexts written by hand", experiment.scores(written, REFINED)),
        Row("(c), learned prompts", experiment.scores(learned, REFINED), experiment.found(learned)),
    ]


def compare(experiment: Experiment) -> list[tuple[str, Sequence[Row]]]:
    """Train and measure the three stages on every generator."""
    table: list[tuple[str, Sequence[Row]]] = []
    for number, (name, changes) in enumerate(GENERATORS.items()):
        # The first is the ablation's own.
        base = experiment.pretrain(f"base{number or ''}", changes)
        learned = experiment.run(f"learned{number or ''}", base=base)
        experiment.match(learned)
        experiment.refine(learned)
        rows = (
            Row("base", experiment.scores(base, BASE)),
            Row("(a)", experiment.scores(learned, MATCHED)),
            Row("(c)", experiment.scores(learned, REFINED), experiment.found(learned)),
        )
        table.append((name, rows))
    return table
