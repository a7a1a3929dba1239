"""Commands about data: prepare, import-checkpoint and export."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.cli.options import (
    DeviceOption,
    OverwriteOption,
    ThreadsOption,
    pick_device,
    print_error,
    progress,
    require_export_packages,
)
from models.messages import printable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from models.data.classes import ClassList
    from models.data.mask_folder import MaskedImage
    from models.prepare import Prepared
    from models.weaktr_sizes import WeakTrSizes

    Writer = Callable[[Iterable[MaskedImage], ClassList, Path], str]

_RootArgument = Annotated[Path, typer.Argument(help="Folder that the archives were unpacked in.")]
_OutputOption = Annotated[Path, typer.Option("--output", help="Folder for labels.csv, classes.txt, ground_truth/.")]
_PhotosOption = Annotated[int | None, typer.Option(min=1, help="Take so many photos of each list only, for a trial.")]
_ThoroughOption = Annotated[
    bool,
    typer.Option("--thorough", help="Read every photo, not a hundred, and archives that are still there."),
]

_IN_ORDER, _BY_INDEX = "in-order", "by-index"


class _Kind(StrEnum):
    """Content of a released file."""

    WEAKTR = "weaktr"
    PROMPTS = "prompts"


class _Format(StrEnum):
    """Formats of ``semples export``."""

    VOC = "voc"
    COCO = "coco"
    CVAT = "cvat"
    LABEL_STUDIO = "label-studio"


def voc(
    root: _RootArgument,
    output: _OutputOption,
    photos: _PhotosOption = None,
    thorough: _ThoroughOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """PASCAL VOC 2012 (VOCtrainval_11-May-2012.tar), with the masks of SBD (benchmark.tgz) if they are there.

    Unpacked in ROOT they are VOCdevkit/VOC2012 and benchmark_RELEASE. What is missing is named, with where to get it.
    """
    require_export_packages()
    from models.prepare.voc import prepare_voc

    prepared = prepare_voc(root, output, photos=photos, thorough=thorough, overwrite=overwrite, watch=_progress_bar)
    _report_prepared(prepared, output, "voc")


def coco(
    root: _RootArgument,
    output: _OutputOption,
    photos: _PhotosOption = None,
    thorough: _ThoroughOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """MS COCO 2014 (train2014.zip, val2014.zip, annotations_trainval2014.zip).

    Unpacked in ROOT they are train2014, val2014 and annotations. What is missing is named, with where to get it.
    """
    require_export_packages()
    from models.prepare.coco import prepare_coco

    prepared = prepare_coco(root, output, photos=photos, thorough=thorough, overwrite=overwrite, watch=_progress_bar)
    _report_prepared(prepared, output, "coco")


def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="File that torch.save wrote; nothing in it is run.")],
    kind: Annotated[_Kind, typer.Option("--kind", help="What it holds.")],
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
        typer.Option("--work", help="prompts: work directory of the run, begun or, with --config, new."),
    ] = None,
    config: Annotated[str | None, typer.Option(help="prompts: configuration of a new work directory.")] = None,
    channels: Annotated[
        str,
        typer.Option(
            help="The classes' channels in the file: in-order (it has these classes alone), "
            "by-index (index - 1, as COCO's category ids), or a file of 'class-index channel' lines."
        ),
    ] = _IN_ORDER,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Convert public WeakTr checkpoints and released background prompts into files of this project."""
    from models.data.provenance import refuse_foreign

    if kind is _Kind.WEAKTR:
        if output is None or classes is None or work is not None or config is not None:
            raise ValueError("expected --classes and --output with weaktr, no --work or --config")
        if output.exists() and output.samefile(file):
            raise ValueError(f"expected an output that keeps {file}, got itself")
        refuse_foreign([output], overwrite=overwrite)
        _import_weaktr(file, classes, channels, output)
        return
    if work is None or output is not None or (config is None) != (classes is None):
        raise ValueError("expected --work with prompts, --config and --classes if it is new")
    chosen = pick_device(device, threads)
    print(f"written to {_import_prompts(file, channels, work, config, classes, chosen, overwrite=overwrite)}")
    print(
        "They are read with CLIP's '.' at the end of a word; the released ones were trained with the '.' inside a word."
    )


def export(
    folder: Annotated[Path, typer.Argument(help="Folder that make-pseudo-masks wrote.")],
    images: Annotated[Path, typer.Option("--images", help="Folder of the photos.")],
    to: Annotated[_Format, typer.Option("--format", help="Whose format.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to make; new or empty.")],
    image_prefix: Annotated[
        str | None,
        typer.Option(help="label-studio: prefix of the photos' URLs. Default: /data/local-files/?d="),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a folder that is not empty, over files of the same names.")
    ] = False,
) -> None:
    """Export pseudo masks as a VOC folder, COCO json, CVAT mask zip or Label Studio json. All photos, or nothing."""
    from models.data.mask_folder import open_mask_folder
    from models.exports import new_folder

    write = _writer(to, image_prefix)
    masks = open_mask_folder(folder, images)
    with progress(f"export to {to.value}", len(masks)) as (bar, task), new_folder(output, overwrite=overwrite) as new:
        photos = bar.track(masks.masked_images(), task_id=task)
        written = write(photos, masks.classes, new)
    print(f"{printable(output)}: {written}")


@contextmanager
def _progress_bar(title: str, total: int) -> Iterator[Callable[[], object]]:
    with progress(title, total) as (bar, task):
        yield lambda: bar.advance(task)


def _report_prepared(prepared: Prepared, output: Path, config: str) -> None:
    for line in prepared.lines:
        print(line)
    for note in prepared.notes:
        print_error(note)
    print(
        f"next: copy models/configs/{config}.yaml to my.yaml, name in it the generator's weights that 'semples "
        "import-checkpoint' wrote (or give it a section pretrain_generator), and then"
    )
    print(
        f"  semples train-generator work/ --images {_shell(prepared.images)} --labels {_shell(output / 'labels.csv')} "
        f"--classes {_shell(output / 'classes.txt')} --config my.yaml"
    )


def _shell(path: Path) -> str:
    """Return a path as a shell takes it: one word, whatever it holds."""
    text = str(path)
    if text.isprintable():
        return shlex.quote(f"./{text}" if text.startswith("-") else text)
    octets = (chr(each) if 32 <= each < 127 and each not in b"'\\" else f"\\x{each:02x}" for each in os.fsencode(text))
    return f"$'{''.join(octets)}'"  # of bash, zsh and POSIX.1-2024


def _import_weaktr(file: Path, classes: Path, channels: str, output: Path) -> None:
    from models.bundle.import_checkpoint import read_torch_file, weaktr_weights
    from models.data.classes import read_class_list
    from models.tensors import write_tensors

    class_list = read_class_list(classes)
    chosen = _channel_map(channels, class_list)
    imported = weaktr_weights(read_torch_file(file), class_list, channels=chosen, source=str(file))
    write_tensors(output, imported.tensors)
    print(f"written to {printable(output)}: {len(class_list)} classes; in the configuration")
    print(f"  generator: {_settings(output, imported.sizes)}")
    print("with 'pooling: avg' if it was trained so, which the file does not tell (older public ones for COCO).")


def _settings(weights: Path, sizes: WeakTrSizes) -> str:
    """The generator's configuration in YAML, without defaults."""
    import yaml

    differing = sizes.model_dump(exclude_defaults=True)
    entries = {"kind": "weaktr", "weights": str(weights), **differing}
    text: str = yaml.safe_dump(entries, default_flow_style=True, sort_keys=False, width=1000)
    return text.strip()


def _channel_map(channels: str, classes: ClassList) -> Mapping[int, int] | None:
    if channels == _IN_ORDER:
        return None
    if channels == _BY_INDEX:
        return {info.index: info.index - 1 for info in classes.classes}
    from models.bundle.import_checkpoint import read_channels

    return read_channels(Path(channels))


def _import_prompts(
    file: Path,
    channels: str,
    work: Path,
    config: str | None,
    classes: Path | None,
    device: torch.device,
    *,
    overwrite: bool,
) -> Path:
    from models.config import load_config
    from models.data.classes import read_class_list
    from models.training.prompts import adopt_prompts
    from models.training.run import open_run, start_run

    if config is None or classes is None:
        run = open_run(work, device=device)
        return adopt_prompts(run, _context(file, channels, run.classes))
    settings, class_list = load_config(config), read_class_list(classes)
    context = _context(file, channels, class_list)
    # The work directory is created only after the file was read.
    return adopt_prompts(start_run(settings, class_list, work, device=device, overwrite=overwrite), context)


def _context(file: Path, channels: str, classes: ClassList) -> Tensor:
    from models.bundle.import_checkpoint import prompts_context, read_torch_file

    chosen = _channel_map(channels, classes)
    return prompts_context(read_torch_file(file), classes, channels=chosen, source=str(file))


def _writer(to: _Format, image_prefix: str | None) -> Writer:
    if image_prefix is not None and to is not _Format.LABEL_STUDIO:
        raise ValueError(f"expected --image-prefix with label-studio only, got it with {to.value}")
    if to is _Format.VOC:
        from models.exports.voc import write_voc

        return write_voc
    if to is _Format.CVAT:
        from models.exports.cvat import write_cvat

        return write_cvat
    if to is _Format.LABEL_STUDIO:
        from models.exports.label_studio import LOCAL_FILES, write_label_studio

        prefix = LOCAL_FILES if image_prefix is None else image_prefix
        return partial(write_label_studio, image_prefix=prefix)
    require_export_packages()
    from models.exports.coco import write_coco

    return write_coco
