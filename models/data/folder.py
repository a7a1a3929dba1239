"""A data set that is a folder of images and the labels of each."""

from __future__ import annotations

from pathlib import Path

from models.data.classes import MAX_LABELS, ClassList, UnknownLabelError
from models.data.labels import read_labels
from models.data.open_labels import with_open_labels
from models.data.sample import Sample


def classes_with_open_labels(labels: Path, classes: ClassList) -> ClassList:
    """Return classes with one for each label of a file that none of them is called by; see ``with_open_labels``.

    Args:
        labels: anything that ``read_labels`` takes.
        classes: of a bundle.

    Raises:
        ValueError: if a label will not do, or they are too many.
        OSError: if the labels cannot be read.
    """
    rows = read_labels(labels, classes)
    try:
        return with_open_labels(classes, {label for names in rows.values() for label in names})
    except ValueError as error:
        raise ValueError(f"{labels}: {error}") from error


def read_folder(images: Path, labels: Path, classes: ClassList) -> list[Sample]:
    """Pair the images of a folder with their labels.

    Args:
        images: the folder; images in folders below are called "folder/image.jpg".
        labels: anything that ``read_labels`` takes.
        classes: what may be labeled.

    Raises:
        ValueError: if a label is not a class, an image is missing, two images share a stem (their masks would overwrite
            each other), or nothing is labeled.
        OSError: if the labels cannot be read.
    """
    samples = []
    stems: dict[str, str] = {}
    for name, names in read_labels(labels, classes).items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{labels}: expected an image below {images}, got {name!r}")
        path = images / name
        if not path.is_file():
            got = "none" if images.is_dir() else "no such folder"
            raise ValueError(f"{labels}: expected an image {name!r} in {images}, got {got}")
        if stems.setdefault(path.stem, name) != name:
            raise ValueError(
                f"{labels}: expected distinct stems, got {stems[path.stem]!r} and {name!r}"
            )
        try:
            channels = tuple(sorted({classes.channel(label) for label in names}))
        except UnknownLabelError as error:
            raise ValueError(f"{labels}: {name}: {error}") from error
        if len(channels) > MAX_LABELS:
            raise ValueError(
                f"{labels}: {name}: expected at most {MAX_LABELS} labels, got {len(channels)}"
            )
        samples.append(Sample(path, channels, images))
    if not any(sample.channels for sample in samples):
        raise ValueError(f"{labels}: expected at least one labeled image, got none")
    return samples
