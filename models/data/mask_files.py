"""Files of masks and soft maps: palette PNGs with their provenance, overlays, npz. Free of torch."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX
from models.data.provenance import SOFTWARE, refuse_foreign
from models.inference.masks import ClassResult, MaskOptions, Segmentation, SoftMaps

OVERLAY = "_overlay"  # follows the stem in the file names of overlays
_SOFT_OPACITY = 0.8  # of a soft map's color where the map is 1
_UNREADABLE = (KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile)


class _Model(Protocol):
    """A bundle's info or a worker's announcement of one."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def licence(self) -> str: ...


def mask_png(segmentation: Segmentation, model: _Model, options: MaskOptions) -> bytes:
    """Encode a segmentation's label map as a palette PNG with its provenance in text chunks.

    These have no time and no place: equal requests give equal files.
    """
    names = [each.name for each in segmentation.classes]
    zero_shot = ", ".join(each.name for each in segmentation.classes if each.zero_shot)
    text = {
        "Software": f"{SOFTWARE} {software_version()}",
        "Model": f"{model.name} {model.version}",
        "Licence": model.licence,
        "Labels": ", ".join(names),
        **({"Zero-shot": zero_shot} if zero_shot else {}),
        "Options": json.dumps(asdict(options.for_classes(names)), sort_keys=True),
    }
    return label_map_png(segmentation.label_map, text=text)


def describe(segmentation: Segmentation, model: _Model, options: MaskOptions, *, image: str) -> dict[str, Any]:
    """Return a mask's record, in JSON's types."""
    height, width = segmentation.label_map.shape
    return mask_record(
        image=image,
        size=(width, height),
        model={"name": model.name, "version": model.version},
        options=options.for_classes(each.name for each in segmentation.classes),
        classes=segmentation.classes,
        ignored=segmentation.ignored,
    )


def mask_record(
    *,
    image: str,
    size: tuple[int, int],
    model: Mapping[str, str],
    options: MaskOptions,
    classes: Sequence[ClassResult],
    ignored: float,
) -> dict[str, Any]:
    """Return a mask's record, in JSON's types: one line of ``results.jsonl``.

    ``image`` is a path below the folder of all images, ``size`` (width, height), ``model`` name and version;
    ``options`` have the thresholds of these classes alone.
    """
    return {
        "image": image,
        "size": {"width": size[0], "height": size[1]},
        "model": dict(model),
        "options": asdict(options),
        "classes": [asdict(each) for each in classes],
        "ignored": ignored,
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
    ``image_size`` (height, width). Not compressed: soft maps hardly shrink, and compressing takes longer than making
    them.
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
    """Read what ``scores_npz`` wrote, without the CAMs; ValueError if the file holds something else."""
    with _opened_npz(source) as stored:
        height, width = stored["image_size"].tolist()
        return SoftMaps(
            scores=stored["scores"],
            indices=stored["class_index"].astype(np.int64),
            names=tuple(stored["class_name"].tolist()),
            size=(height, width),
            background=stored.get("background"),
        )


def read_cams(source: Path | BinaryIO) -> NDArray[np.float16] | None:
    """Read the CAMs that ``scores_npz`` wrote, (n, h', w'); None if there are none, as from a segmenter."""
    with _opened_npz(source) as stored:
        cams: NDArray[np.float16] | None = stored.get("cams")
        return cams


@contextmanager
def _opened_npz(source: Path | BinaryIO) -> Iterator[Any]:
    try:
        with np.load(source, allow_pickle=False) as stored:
            yield stored
    except _UNREADABLE as error:
        name = source if isinstance(source, Path) else "the file"
        raise ValueError(f"expected soft scores in {name}, got {error}") from error


def read_label_map(path: Path) -> NDArray[np.uint8]:
    """Read a label map, (H, W): class index per pixel, 0 background, 255 ignore; ValueError if not of mode L or P."""
    return read_indexed(path)[0]


def read_indexed(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Read a label map as ``read_label_map`` does, and its palette, (256, 3), None where it is gray."""
    with _opened_picture(path) as picture:
        if picture.mode not in ("L", "P"):
            raise ValueError(f"expected a label map in mode L or P in {path}, got {picture.mode}")
        label_map: NDArray[np.uint8] = np.array(picture)
        colors = picture.getpalette("RGB") if picture.mode == "P" else None
        palette = np.array([*(colors or ()), *[0] * 768][:768], dtype=np.uint8).reshape(256, 3)
        return label_map, None if colors is None else palette


def read_mask(source: Path | bytes) -> tuple[NDArray[np.uint8], dict[str, str]]:
    """Read a mask that ``mask_png`` wrote, a palette PNG: its label map, (H, W), and its text chunks."""
    with _opened_picture(source, formats=("PNG",)) as picture:
        if picture.mode != "P":
            raise ValueError(f"expected a palette PNG in {_name(source)}, got mode {picture.mode}")
        text = {str(key): each for key, each in picture.info.items() if isinstance(each, str)}
        return np.array(picture), text


@contextmanager
def _opened_picture(source: Path | bytes, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=formats) as picture:
            yield picture
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected a label map in {_name(source)}, got {error}") from error


def _name(source: Path | bytes) -> str:
    return str(source) if isinstance(source, Path) else "the file"


def occurring(label_map: NDArray[np.uint8]) -> list[int]:
    """Return the indices that a label map, (H, W), holds, ascending."""
    # numpy's unique() sorts all pixels, which takes ten times as long.
    found: list[int] = np.flatnonzero(np.bincount(label_map.ravel(), minlength=256)).tolist()
    return found


def voc_palette() -> NDArray[np.uint8]:
    """Return PASCAL VOC's colors, (256, 3): bits of the index, lowest first, fill R, G, B from the highest bit."""
    index = np.arange(256)
    colors = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colors


def result_paths(output: Path, photo: Path) -> tuple[Path, Path, Path]:
    """Return where a photo's mask, overlay and record go: STEM.png, STEM_overlay.png and STEM.json."""
    return tuple(output / f"{photo.stem}{end}" for end in (".png", f"{OVERLAY}.png", ".json"))  # type: ignore[return-value]


def check_results(output: Path, photos: Sequence[Path], *, overwrite: bool) -> None:
    """Check that the results of photos may be written to a folder.

    Raises:
        ValueError: if they would overwrite a photo, each other or, without ``overwrite``, files that are not ours.
    """
    inputs = {photo.resolve(): photo for photo in photos}
    owners: dict[Path, Path] = {}
    for photo in photos:
        for path in result_paths(output, photo):
            if (kept := inputs.get(path.resolve())) is not None:
                raise ValueError(f"expected an output folder that keeps {kept}, got its own")
            if owners.setdefault(path, photo) != photo:
                raise ValueError(f"expected photos whose results have different names, got {owners[path]} and {photo}")
    refuse_foreign(owners, overwrite=overwrite)


def label_map_png(label_map: NDArray[np.uint8], *, text: Mapping[str, str] | None = None) -> bytes:
    """Encode a label map, (H, W), as a palette PNG in VOC colors with text chunks; pixels are the class indices."""
    picture = Image.fromarray(label_map)
    picture.putpalette(voc_palette().tobytes())
    return _png(picture, text or {})


def overlay_png(image: NDArray[np.uint8], label_map: NDArray[np.uint8]) -> bytes:
    """Encode ``overlay``'s result as an RGB PNG."""
    mixed = overlay(image, label_map)
    provenance = {"Software": f"{SOFTWARE} {software_version()}"}
    return _png(Image.fromarray(mixed), provenance, compress_level=1)  # speed before size


def overlay(image: NDArray[np.uint8], label_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay a label map's colors, (H, W), half transparent over an RGB image, (H, W, 3).

    Background stays as it is, ignored pixels turn nearly white, and each region gets a white outline.
    """
    if image.shape[:2] != label_map.shape:
        raise ValueError(f"expected a label map of {image.shape[:2]}, got {label_map.shape}")
    mixed = image.copy()
    shown = label_map != BACKGROUND_INDEX
    # Integers of 16 bits, and only where something is shown: photos may have 40 million pixels.
    colors = vivid_palette().astype(np.uint16)[label_map[shown]] * 128
    mixed[shown] = (image[shown] * np.uint16(128) + colors) >> 8
    mixed[_outline(label_map)] = 255
    return mixed


def soft_overlay(image: NDArray[np.uint8], maps: NDArray[np.float32], indices: Sequence[int]) -> NDArray[np.uint8]:
    """Lay each pixel's best class over a gray image, (H, W, 3), in its color and as strongly as its map says.

    ``maps`` are in [0, 1], (n, H, W); ``indices`` are the classes' values in label maps, n of them, which may be none.
    """
    if maps.shape != (len(indices), *image.shape[:2]):
        raise ValueError(f"expected maps {(len(indices), *image.shape[:2])}, got {maps.shape}")
    mixed = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    if len(indices):
        colors = vivid_palette()[np.array(indices)[maps.argmax(axis=0)]]
        weight = _SOFT_OPACITY * maps.max(axis=0)[..., None].clip(0, 1)
        mixed = mixed * (1 - weight) + colors * weight
    rounded: NDArray[np.uint8] = mixed.round().astype(np.uint8)
    return rounded


def vivid_palette() -> NDArray[np.uint8]:
    """Return the colors of overlays, (256, 3): VOC's but brightened, for its first ones are too dark over a photo."""
    colors = voc_palette().astype(np.int64)
    brightest = np.maximum(colors.max(axis=1, keepdims=True), 1)
    vivid: NDArray[np.uint8] = (colors * 255 // brightest).astype(np.uint8)
    vivid[IGNORE_INDEX] = 224
    return vivid


def _outline(label_map: NDArray[np.uint8]) -> NDArray[np.bool_]:
    edge = np.zeros(label_map.shape, dtype=bool)
    edge[:, 1:] |= label_map[:, 1:] != label_map[:, :-1]
    edge[1:] |= label_map[1:] != label_map[:-1]
    return edge


def soft_map_png(values: NDArray[np.floating]) -> bytes:
    """Encode values in [0, 1], (H, W), as a palette PNG of indices ``round(255 * value)``, in cubehelix colors."""
    steps = (np.asarray(values, dtype=np.float32).clip(0, 1) * 255).round().astype(np.uint8)
    picture = Image.fromarray(steps)
    picture.putpalette(_cubehelix().tobytes())
    return _png(picture, {}, compress_level=1)  # speed before size


@cache
def _cubehelix() -> NDArray[np.uint8]:
    """Return 256 colors from black to white, (256, 3), whose perceived brightness grows evenly."""
    gray = np.linspace(0, 1, 256)
    angle = 2 * np.pi * (0.5 / 3 + 1 - 1.5 * gray)
    amplitude = gray * (1 - gray) / 2
    turned = np.stack([np.cos(angle), np.sin(angle)])
    # Directions of equal perceived brightness, as the paper gives them.
    weights = np.array([[-0.14861, 1.78277], [-0.29227, -0.90649], [1.97294, 0.0]])
    colors = gray + amplitude * (weights @ turned)
    table: NDArray[np.uint8] = (colors.T.clip(0, 1) * 255).round().astype(np.uint8)
    return table


def _png(picture: Image.Image, text: Mapping[str, str], *, compress_level: int = 6) -> bytes:
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info, compress_level=compress_level)
    return buffer.getvalue()
