"""What a pseudo mask leaves on disk: one writer for a single photo and for a folder of them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from models.pseudo_masks import SoftMaps

if TYPE_CHECKING:  # at run time they would bring torch, which a check of the input does not need
    from models.bundle_info import BundleInfo
    from models.segmentation import ClassResult, MaskOptions, Segmentation

OVERLAY = "_overlay"  # what follows the stem in the name of a picture to look at


def describe(
    segmentation: Segmentation, info: BundleInfo, options: MaskOptions, *, image: str
) -> dict[str, Any]:
    """Return what is worth knowing about a pseudo mask in JSON's types: classes, model, thresholds."""
    height, width = segmentation.label_map.shape
    used = options.among(each.name for each in segmentation.classes)
    return {
        "image": image,
        "size": {"width": width, "height": height},
        "model": {"name": info.name, "version": info.version},
        "options": asdict(used),
        "classes": [asdict(each) for each in segmentation.classes],
        "ignored": segmentation.ignored,
    }


class Model(Protocol):
    """What provenance says of a model; bundles and their announcements fit."""

    @property
    def name(self) -> str:
        """The bundle's name."""
        ...

    @property
    def version(self) -> str:
        """The hash of its content."""
        ...

    @property
    def licence(self) -> str:
        """Of its weights."""
        ...


def provenance(
    model: Model, classes: Sequence[ClassResult], options: Mapping[str, Any]
) -> dict[str, str]:
    """Return the PNG text chunks that say where a mask comes from.

    No time and no place: equal requests give equal files. Labels that the model was not trained on are named once more.
    """
    zero_shot = ", ".join(each.name for each in classes if each.zero_shot)
    return {
        "Software": f"semples {software_version()}",
        "Model": f"{model.name} {model.version}",
        "Licence": model.licence,
        "Labels": ", ".join(each.name for each in classes),
        **({"Zero-shot": zero_shot} if zero_shot else {}),
        "Options": json.dumps(options, sort_keys=True),
    }


@cache
def software_version() -> str:
    """Return the installed version; "unknown" where the package is not installed."""
    try:
        return version("semples")
    except PackageNotFoundError:
        return "unknown"


def scores_npz(segmentation: Segmentation) -> bytes:
    """Encode a segmentation's soft maps as an npz that loads without pickle.

    ``cams`` (n, h', w') float16 at CAM resolution (not from a segmenter), ``scores`` (n, h, w) float16 after
    refinement, from a segmenter ``background`` (h, w) float16 too, ``class_index`` (n,), ``class_name`` (n,) and
    ``image_size`` (height, width). Not compressed: soft maps hardly shrink, and deflating them takes longer than
    making them.
    """
    arrays: dict[str, Any] = {
        "scores": segmentation.scores,
        "class_index": np.array([each.index for each in segmentation.classes], dtype=np.int64),
        "class_name": np.array([each.name for each in segmentation.classes], dtype=np.str_),
        "image_size": np.array(segmentation.label_map.shape, dtype=np.int64),
    }
    if segmentation.cams is not None:
        arrays["cams"] = segmentation.cams
    if segmentation.background is not None:
        arrays["background"] = segmentation.background
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def read_soft_maps(source: Path | BinaryIO) -> SoftMaps:
    """Read what ``scores_npz`` wrote, but for the CAMs.

    Raises:
        ValueError: if the file holds something else.
    """
    try:
        with np.load(source, allow_pickle=False) as stored:
            height, width = stored["image_size"].tolist()
            return SoftMaps(
                scores=stored["scores"],
                indices=stored["class_index"].astype(np.int64),
                names=tuple(stored["class_name"].tolist()),
                size=(height, width),
                background=stored.get("background"),
            )
    except _UNREADABLE as error:
        raise ValueError(f"expected soft scores in {_name(source)}, got {error}") from error


def read_cams(source: Path | BinaryIO) -> NDArray[np.float16] | None:
    """Read the CAMs that ``scores_npz`` wrote, (n, h', w'); None if there are none, as from a segmenter.

    Raises:
        ValueError: if the file holds something else.
    """
    try:
        with np.load(source, allow_pickle=False) as stored:
            cams: NDArray[np.float16] | None = stored.get("cams")
            return cams
    except _UNREADABLE as error:
        raise ValueError(f"expected soft maps in {_name(source)}, got {error}") from error


_UNREADABLE = (KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile)


def _name(source: Path | BinaryIO) -> str:
    return str(source) if isinstance(source, Path) else "the file"
