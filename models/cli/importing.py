"""The command that takes in what others have trained and released."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.cli.options import DeviceOption, ThreadsOption, pick_device

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from models.data.classes import ClassList
    from models.generators.weaktr_sizes import WeakTrSizes

IN_ORDER, BY_INDEX = "in-order", "by-index"


class Kind(StrEnum):
    """What a released file holds."""

    WEAKTR = "weaktr"
    PROMPTS = "prompts"


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("import-checkpoint")(import_checkpoint)


def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="File that torch.save wrote; nothing in it is run.")],
    kind: Annotated[Kind, typer.Option("--kind", help="What it holds.")],
    classes: Annotated[
        Path | None,
        typer.Option(help="File of 'index name' lines. Default for prompts: the work directory's."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="weaktr: file to write, for 'generator: {weights: …}'."),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work", help="prompts: work directory of the run, begun or, with --config, new."
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="prompts: configuration of a new work directory.")
    ] = None,
    channels: Annotated[
        str,
        typer.Option(
            help="The classes' channels in the file: in-order (it has these classes alone), "
            "by-index (index - 1, as COCO's category ids), or a file of 'class-index channel' lines."
        ),
    ] = IN_ORDER,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Turn the public WeakTr checkpoints and the released prompts into our files."""
    if kind is Kind.WEAKTR:
        if output is None or classes is None or work is not None or config is not None:
            raise ValueError("expected --classes and --output with weaktr, no --work or --config")
        _import_weaktr(file, classes, channels, output)
        return
    if work is None or output is not None or (config is None) != (classes is None):
        raise ValueError("expected --work with prompts, --config and --classes if it is new")
    place = pick_device(device, threads)
    print(f"written to {_import_prompts(file, channels, work, config, classes, place)}")
    print(
        "They are read with CLIP's ordinary '.'; the released ones were learned with the one inside words."
    )


def _import_weaktr(file: Path, classes: Path, channels: str, output: Path) -> None:
    from models.data.classes import read_class_list
    from models.import_checkpoint import weaktr_weights
    from models.tensors import write_tensors

    class_list = read_class_list(classes)
    chosen = _channel_map(channels, class_list)
    imported = weaktr_weights(_read(file), class_list, channels=chosen, source=str(file))
    if output.exists() and output.samefile(file):
        raise ValueError(f"expected an output that keeps {file}, got itself")
    write_tensors(output, imported.tensors)
    print(f"written to {output}: {len(class_list)} classes; in the configuration")
    print(f"  generator: {_settings(output, imported.sizes)}")
    print(
        "with 'pooling: avg' if it was trained so, which the file does not tell (older public ones for COCO)."
    )


def _settings(weights: Path, sizes: WeakTrSizes) -> str:
    """The generator's configuration in YAML, as far as it differs from the defaults."""
    from dataclasses import asdict

    import yaml

    default = asdict(type(sizes)())
    differing = {key: value for key, value in asdict(sizes).items() if value != default[key]}
    entries = {"kind": "weaktr", "weights": str(weights), **differing}
    text: str = yaml.safe_dump(entries, default_flow_style=True, sort_keys=False, width=1000)
    return text.strip()


def _read(file: Path) -> object:
    from models.torch_file import read_torch_file

    return read_torch_file(file)


def _channel_map(channels: str, classes: ClassList) -> Mapping[int, int] | None:
    if channels == IN_ORDER:
        return None
    if channels == BY_INDEX:
        return {info.index: info.index - 1 for info in classes.classes}
    from models.import_channels import read_channels

    return read_channels(Path(channels))


def _import_prompts(
    file: Path,
    channels: str,
    work: Path,
    config: str | None,
    classes: Path | None,
    device: torch.device,
) -> Path:
    from models.config import load_config
    from models.data.classes import read_class_list
    from models.run import open_run, start_run
    from models.stages import adopt_prompts

    if config is None or classes is None:
        run = open_run(work, device=device)
        return adopt_prompts(run, _context(file, channels, run.classes))
    settings, class_list = load_config(config), read_class_list(classes)
    context = _context(file, channels, class_list)
    # The work directory is begun only now that there is something to put there.
    return adopt_prompts(start_run(settings, class_list, work, device=device), context)


def _context(file: Path, channels: str, classes: ClassList) -> Tensor:
    from models.import_checkpoint import prompts_context

    chosen = _channel_map(channels, classes)
    return prompts_context(_read(file), classes, channels=chosen, source=str(file))
