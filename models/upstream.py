"""Which files a stage rests on, so that what was made of others is not taken up, nor taken for done."""

from __future__ import annotations

import hashlib
from pathlib import Path

from models.config import Config
from models.json_files import read_json, write_json

_INITIAL = "pretrain-generator/generator.safetensors"
_RESTS_ON = {
    "train-generator": (_INITIAL,),
    "learn-prompts": ("train-generator/generator.safetensors",),
    "refine-generator": (_INITIAL, "learn-prompts/prompts.safetensors"),
}
_NOTE = "inputs.json"


def inputs_of(work: Path, config: Config, stage: str) -> dict[str, str]:
    """Return the hashes of the files that a stage starts from, as they are now; missing ones are left out.

    Args:
        work: the run's directory.
        config: of the run.
        stage: its name; one that is made of photos alone has no such files.

    Raises:
        OSError: if one cannot be read.
    """
    paths = {name: work / name for name in _RESTS_ON.get(stage, ())}
    if config.generator.weights:
        paths["generator.weights"] = Path(config.generator.weights)
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in paths.items()
        if path.is_file()
    }


def note_inputs(work: Path, config: Config, stage: str) -> None:
    """Note beside a stage's result what it was made of.

    Raises:
        OSError: if that fails.
    """
    write_json(work / stage / _NOTE, inputs_of(work, config, stage))


def is_current(work: Path, config: Config, stage: str) -> bool:
    """Return whether a stage's result was made of its files as they are now; those that are gone cannot tell.

    Raises:
        ValueError: if the note is damaged.
    """
    if not (work / stage / _NOTE).is_file():
        return True
    noted = read_json(work / stage / _NOTE)
    now = inputs_of(work, config, stage)
    return all(noted.get(name) == digest for name, digest in now.items())
