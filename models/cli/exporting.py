"""The command that turns a folder of pseudo masks into another tool's format."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.cli.options import progress, require_export_packages

if TYPE_CHECKING:
    from models.data.classes import ClassList
    from models.exports.source import MaskedPhoto

    Writer = Callable[[Iterable[MaskedPhoto], ClassList, Path], str]


class Format(StrEnum):
    """What ``semples export`` writes."""

    VOC = "voc"
    COCO = "coco"
    CVAT = "cvat"
    LABEL_STUDIO = "label-studio"


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("export")(export)


def export(
    folder: Annotated[Path, typer.Argument(help="Folder that make-pseudo-masks wrote.")],
    images: Annotated[Path, typer.Option("--images", help="Folder of the photos.")],
    to: Annotated[Format, typer.Option("--format", help="Whose format.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to make; new or empty.")],
    image_prefix: Annotated[
        str | None,
        typer.Option(
            help="label-studio: what a photo's name is put behind to become its URL. "
            "Default: /data/local-files/?d="
        ),
    ] = None,
) -> None:
    """Export pseudo masks as a VOC folder, COCO json, CVAT mask zip or Label Studio json. All photos, or nothing."""
    from models.exports.destination import new_folder
    from models.exports.source import open_mask_folder

    write = _writer(to, image_prefix)
    masks = open_mask_folder(folder, images)
    with progress(f"export to {to.value}", len(masks)) as (bar, task), new_folder(output) as place:
        photos = bar.track(masks.photos(), task_id=task)
        written = write(photos, masks.classes, place)
    print(f"{output}: {written}")


def _writer(to: Format, image_prefix: str | None) -> Writer:
    if image_prefix is not None and to is not Format.LABEL_STUDIO:
        raise ValueError(f"expected --image-prefix with label-studio only, got it with {to.value}")
    if to is Format.VOC:
        from models.exports.voc import write_voc

        return write_voc
    if to is Format.CVAT:
        from models.exports.cvat import write_cvat

        return write_cvat
    if to is Format.LABEL_STUDIO:
        from models.exports.label_studio import LOCAL_FILES, write_label_studio

        prefix = LOCAL_FILES if image_prefix is None else image_prefix
        return partial(write_label_studio, image_prefix=prefix)
    require_export_packages()
    from models.exports.coco import write_coco

    return write_coco
