"""A Label Studio project's labeling interface: where its tasks' images are and what regions are to be called. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from models.data.classes import ClassList, UnknownLabelError
from models.data.labels import split_labels
from models.data.voc import parse_xml
from models.exports.label_studio import Tags, brush_region, polygon_regions
from service.errors import ProblemError, invalid_field


@dataclass(frozen=True)
class Control:
    """A tag for regions: its name, and its labels."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Labeling:
    """What of an interface matters here.

    Attributes:
        image: name of the image's tag.
        field: of a task's data that holds the image.
        brush: the tag for brush regions, if there is one.
        polygon: the tag for polygons, if there is one.
    """

    image: str
    field: str
    brush: Control | None
    polygon: Control | None


def parse_labeling(config: str, *, field: str) -> Labeling:
    """Read an interface.

    Args:
        config: its XML.
        field: of the request, for errors.

    Raises:
        ProblemError: if it is none, or has no image with brush or polygon labels.
    """
    try:
        root = parse_xml(config)
    except ValueError as error:
        raise invalid_field(field, f"expected a labeling interface in XML, got {error}") from error
    image = root.find(".//Image")
    name = "" if image is None else image.get("name", "")
    value = "" if image is None else image.get("value", "")
    brush, polygon = (_control(root, tag, name) for tag in ("BrushLabels", "PolygonLabels"))
    if not name or not value.startswith("$") or (brush is None and polygon is None):
        raise invalid_field(
            field, "expected an Image of a task's field, and BrushLabels or PolygonLabels for it"
        )
    return Labeling(name, value[1:], brush, polygon)


def _control(root: ElementTree.Element, tag: str, image: str) -> Control | None:
    for each in root.iter(tag):
        name = each.get("name", "")
        if name and image in each.get("toName", "").split(","):
            labels = (label.get("value", "") for label in each.iter("Label"))
            return Control(name, tuple(filter(None, labels)))
    return None


def image_labels(task: Mapping[str, Any], classes: ClassList, *, field: str) -> list[str]:
    """Return what a task says that its image shows: choices in its annotations, and a field of its data.

    Args:
        task: in JSON's types, from outside.
        classes: of the model; choices that name none of them are about something else.
        field: of the data: labels as people write them, or a list.
    """
    chosen = [label for label in _choices(task.get("annotations")) if _knows(classes, label)]
    data = task.get("data")
    told = data.get(field, ()) if isinstance(data, Mapping) else ()
    words = split_labels([told]) if isinstance(told, str) else told
    if not isinstance(words, list | tuple):
        return chosen
    return chosen + [each.strip() for each in words if isinstance(each, str) and each.strip()]


def _choices(annotations: Any) -> Iterator[str]:
    for annotation in annotations if isinstance(annotations, list) else ():
        results = annotation.get("result") if isinstance(annotation, Mapping) else None
        for result in results if isinstance(results, list) else ():
            value = result.get("value") if isinstance(result, Mapping) else None
            choices = value.get("choices") if isinstance(value, Mapping) else None
            for each in choices if isinstance(choices, list) else ():
                if isinstance(each, str):
                    yield each


def _knows(classes: ClassList, label: str) -> bool:
    try:
        classes.channel(label)
    except UnknownLabelError:
        return False
    return True


def regions(
    labeling: Labeling, label_map: NDArray[np.uint8], classes: ClassList, present: Sequence[int]
) -> list[dict[str, Any]]:
    """Return a label map's regions as Label Studio takes them, of the classes that the interface has labels for.

    Args:
        labeling: the interface; with both brush and polygons, brush regions are made.
        label_map: (H, W).
        classes: of the model.
        present: indices of the classes in the label map.
    """
    control = labeling.brush or labeling.polygon
    if control is None:
        raise ProblemError("invalid-request", "expected a tag for regions")
    tags = Tags(control.name, labeling.image)
    made: list[dict[str, Any]] = []
    for label in control.labels:
        if not _knows(classes, label):
            continue
        index = classes.classes[classes.channel(label)].index
        if index not in present:
            continue
        if labeling.brush is not None:
            made.append(brush_region(label_map, index, label, tags))
        else:
            made += polygon_regions(label_map, index, label, tags)
    return made
