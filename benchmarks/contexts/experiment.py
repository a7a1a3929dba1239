"""One seed of the world: scenes, CLIP, base network and every variant, each kept on disk and made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.contexts.dataset import Sizes, read_captions, read_samples, write_dataset
from benchmarks.contexts.measure import Score, contexts_found, measure
from benchmarks.contexts.tiny_clip import load_captioned, train_clip
from benchmarks.contexts.world import CLASSES, CONTEXTS
from benchmarks.offline_clip.folder import WEIGHTS_NAME
from models.build import build_prompts, load_generator
from models.clip import FrozenClip
from models.config import ClipConfig, Config
from models.generators import MaskGenerator
from models.io import to_json, write_atomically
from models.training import generator
from models.training.generator import pretrain_generator
from models.training.loop import Step
from models.training.run import Run, start_run

BASE, MATCHED, REFINED = "pretrain-generator", "train-generator", "refine-generator"
HELD_OUT = ("shuffled", "usual")
_WEIGHTS = "generator.safetensors"

# A prompt's embeddings, (K, D), in place of learned ones.
Substitute = Callable[[Config, FrozenClip], Tensor]
# Values that differ from a configuration's, by section; of the generator all that are not defaults.
Changes = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class Experiment:
    """One seed of the world.

    Attributes:
        folder: for everything that is made.
        config: of the stages; its seed is that of the world, and CLIP is set here.
        sizes: scenes of each split.
        clip_epochs: over the captions.
        say: called with what begins.
    """

    folder: Path
    config: Config
    sizes: Sizes = field(default_factory=Sizes)
    clip_epochs: int = 10
    say: Callable[[str], None] = print

    @property
    def data(self) -> Path:
        """The data set's folder."""
        return self.folder / "data"

    def prepare(self) -> None:
        """Make the scenes and the CLIP, unless they are there."""
        write_dataset(self.data, self.sizes, seed=self.config.seed)
        clip = self.folder / "clip"
        if (clip / WEIGHTS_NAME).is_file():
            return
        self.say("CLIP")
        train_clip(
            load_captioned(read_captions(self.data, "captions")),
            clip,
            epochs=self.clip_epochs,
            seed=self.config.seed,
        )

    def run(self, name: str, *, base: Run | None = None) -> Run:
        """Open the work directory of a variant; its generator starts as the base leaves it, if there is one."""
        clip = ClipConfig(model=f"local-dir:{self.folder / 'clip'}", pretrained=None)
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
        values = self.config.model_dump()
        for section, changed in (changes or {}).items():
            # Another kind of generator has other values.
            values[section] = {**(values[section] if section != "generator" else {}), **changed}
        run = replace(self, config=Config.model_validate(values)).run(name)
        self._once(run, BASE, _WEIGHTS, pretrain_generator)
        return run

    def match(self, run: Run) -> None:
        """Stage (a)."""
        self._once(run, MATCHED, _WEIGHTS, generator.train_generator)

    def refine(self, run: Run, substitute: Substitute | None = None) -> None:
        """Stages (b) and (c); a substitute stands for what (b) would learn."""
        name = "prompts.safetensors"
        if substitute is None:
            self._once(run, "learn-prompts", name, generator.learn_prompts)
        elif not (run.work / "learn-prompts" / name).is_file():
            clip, text = generator.supervision(run)
            embeddings = substitute(run.config, clip)
            # Nothing reads the parameters of a prompt that was not learned.
            nothing = torch.zeros(len(CLASSES), 1, clip.prompt_width)
            tensors = {"embeddings": embeddings, "context": nothing, "class_text": text}
            run.save("learn-prompts", name, tensors)
        self._once(run, REFINED, _WEIGHTS, generator.refine_generator)

    def generator(self, run: Run, stage: str) -> MaskGenerator:
        """Load the generator that a stage left."""
        clip, text = generator.supervision(run)
        weights = run.existing(stage, _WEIGHTS)
        return load_generator(run.config, clip, text, weights, device=run.device)

    def scores(self, run: Run, stage: str) -> dict[str, Score]:
        """Measure the generator that a stage left, on both held-out splits."""
        path = run.work / stage / "scores.json"
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            return {split: Score(**values) for split, values in stored.items()}
        generator = self.generator(run, stage)
        found = {
            split: measure(generator, self.data, split, run.config.inference) for split in HELD_OUT
        }
        content = to_json({split: asdict(score) for split, score in found.items()})
        write_atomically(path, content.encode())
        return found

    def found(self, run: Run) -> int:
        """Count the classes whose learned prompt is nearest to their own context."""
        clip, _ = generator.supervision(run)
        return contexts_found(clip, generator.learned_prompts(run)["embeddings"])

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
