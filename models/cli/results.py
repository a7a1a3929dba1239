"""The files that one photo's segmentation leaves: STEM.png, STEM_overlay.png and STEM.json."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.bundle_info import BundleInfo
    from models.images import UprightImage
    from models.segmentation import MaskOptions, Segmentation


def check_keeps(output: Path, image: Path) -> None:
    """Raise ValueError if results in a folder would overwrite the photo."""
    if (output / f"{image.stem}.png").resolve() == image.resolve():
        raise ValueError(f"expected an output folder that keeps {image}, got its own")


def write_results(
    output: Path,
    image: Path,
    upright: UprightImage,
    segmentation: Segmentation,
    options: MaskOptions,
    *,
    info: BundleInfo,
) -> Path:
    """Write a photo's results; returns their path without ending.

    Raises:
        OSError: if the folder cannot be written.
    """
    from models.files import OVERLAY, describe, provenance
    from models.json_files import write_atomically, write_json
    from models.pictures import label_map_png, overlay_png

    stem = output / image.stem
    names = [each.name for each in segmentation.classes]
    text = provenance(info, segmentation.classes, asdict(options.among(names)))
    mask = label_map_png(segmentation.label_map, text=text)
    write_atomically(stem.with_name(f"{image.stem}.png"), mask)
    overlay = overlay_png(upright.pixels, segmentation.label_map)
    write_atomically(stem.with_name(f"{image.stem}{OVERLAY}.png"), overlay)
    record = describe(segmentation, info, options, image=image.name)
    write_json(
        stem.with_name(f"{image.stem}.json"),
        {**record, "exif_orientation": upright.exif_orientation},
    )
    return stem
