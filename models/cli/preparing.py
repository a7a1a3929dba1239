"""Commands that check a downloaded data set and make it ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from models.cli.options import progress, require_export_packages

if TYPE_CHECKING:
    from models.prepare.output import Prepared

RootArgument = Annotated[Path, typer.Argument(help="Folder that the archives were unpacked in.")]
OutputOption = Annotated[
    Path, typer.Option("--output", help="Folder for labels.csv, classes.txt, ground_truth/.")
]
PhotosOption = Annotated[
    int | None, typer.Option(min=1, help="Take so many photos of each list only, for a trial.")
]
ThoroughOption = Annotated[
    bool,
    typer.Option(
        "--thorough", help="Read every photo, not a hundred, and archives that are still there."
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(no_args_is_help=True)
    group.command("voc")(voc)
    group.command("coco")(coco)
    app.add_typer(
        group, name="prepare", help="Check a downloaded data set and write what the commands take."
    )


def voc(
    root: RootArgument,
    output: OutputOption,
    photos: PhotosOption = None,
    thorough: ThoroughOption = False,
) -> None:
    """PASCAL VOC 2012 (VOCtrainval_11-May-2012.tar), with the masks of SBD (benchmark.tgz) if they are there.

    Unpacked in ROOT they are VOCdevkit/VOC2012 and benchmark_RELEASE. What is missing is named, with where to get it.
    """
    require_export_packages()
    from models.prepare.voc import prepare_voc

    prepared = prepare_voc(root, output, photos=photos, thorough=thorough, watch=_watch)
    _report(prepared, output, "voc")


def coco(
    root: RootArgument,
    output: OutputOption,
    photos: PhotosOption = None,
    thorough: ThoroughOption = False,
) -> None:
    """MS COCO 2014 (train2014.zip, val2014.zip, annotations_trainval2014.zip).

    Unpacked in ROOT they are train2014, val2014 and annotations. What is missing is named, with where to get it.
    """
    require_export_packages()
    from models.prepare.coco import prepare_coco

    prepared = prepare_coco(root, output, photos=photos, thorough=thorough, watch=_watch)
    _report(prepared, output, "coco")


@contextmanager
def _watch(title: str, total: int) -> Iterator[Callable[[], object]]:
    with progress(title, total) as (bar, task):
        yield lambda: bar.advance(task)


def _report(prepared: Prepared, output: Path, config: str) -> None:
    for line in prepared.lines:
        print(line)
    for note in prepared.notes:
        Console(stderr=True, soft_wrap=True).print(
            f"semples: {note}", markup=False, highlight=False
        )
    print(
        f"next: copy models/configs/{config}.yaml to my.yaml, name in it the generator's weights that 'semples "
        "import-checkpoint' wrote (or give it a section pretrain_generator), and then"
    )
    print(
        f"  semples train-generator work/ --images {prepared.images} --labels {output / 'labels.csv'} "
        f"--classes {output / 'classes.txt'} --config my.yaml"
    )
