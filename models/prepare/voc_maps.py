"""True label maps of PASCAL VOC: palette PNGs of its own, MATLAB files of SBD."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX
from models.data.voc import VOC_CLASSES

_KNOWN = [BACKGROUND_INDEX, *(info.index for info in VOC_CLASSES.classes), IGNORE_INDEX]


def read_label_map(path: Path, *, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read a label map, (H, W): 0 background, 1 to 20 classes, 255 void (which SBD does not have).

    Args:
        path: a .png or .mat file.
        size: (height, width) of the photo.

    Raises:
        ValueError: if the file is no label map, or one of another size or with other indices.
    """
    label_map = _read_mat(path) if path.suffix == ".mat" else _read_png(path)
    if label_map.shape != size:
        got = " x ".join(map(str, label_map.shape[::-1]))
        raise ValueError(
            f"expected a label map of the photo's {size[1]} x {size[0]} pixels in {path}, got {got}"
        )
    unknown = np.setdiff1d(np.flatnonzero(np.bincount(label_map.ravel())), _KNOWN)
    if len(unknown):
        raise ValueError(f"expected indices from 0 to 20 and 255 in {path}, got {unknown[0]}")
    return label_map


def _read_png(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.mode not in ("L", "P"):
                raise ValueError(f"mode {picture.mode}")
            return np.array(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected a label map in {path}, got {error}") from error


def _read_mat(path: Path) -> NDArray[np.uint8]:
    try:
        found = loadmat(path, variable_names=("GTcls",))["GTcls"]["Segmentation"][0, 0]
        return np.asarray(found, dtype=np.uint8)
    except (
        IndexError, KeyError, MatReadError, NotImplementedError, OSError, TypeError, ValueError, zlib.error,
    ) as error:  # fmt: skip
        raise ValueError(f"expected SBD's GTcls.Segmentation in {path}, got {error!r}") from error
