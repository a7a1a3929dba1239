"""PASCAL VOC's annotations: an XML file a photo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.data.xml_files import parse_xml


@dataclass(frozen=True)
class Annotation:
    """What a photo's XML file says.

    Attributes:
        image: the photo's file name.
        size: its (height, width) in pixels; None if not said.
        labels: names of the objects in it, each once, difficult and truncated ones too.
    """

    image: str
    size: tuple[int, int] | None
    labels: tuple[str, ...]


def read_annotation(path: Path) -> Annotation:
    """Read a photo's XML file.

    Raises:
        ValueError: if it is not such a file.
        OSError: if it cannot be read.
    """
    try:
        root = parse_xml(path.read_bytes())
        image = (root.findtext("filename") or "").strip()
        if root.tag != "annotation" or not image:
            raise ValueError(f"no annotation with a filename but {root.tag!r}")
        height, width = (root.findtext(f"size/{side}") for side in ("height", "width"))
        size = None if height is None or width is None else (int(height), int(width))
    except ValueError as error:
        raise ValueError(f"expected an annotation of PASCAL VOC in {path}, got {error}") from error
    # Not parts/name: heads, hands and feet are not objects.
    names = [(name.text or "").strip() for name in root.iterfind("object/name")]
    return Annotation(image, size, tuple(dict.fromkeys(name for name in names if name)))


def read_annotations(folder: Path) -> dict[str, tuple[str, ...]]:
    """Read a folder of XML files: labels by photo, by file name.

    Raises:
        ValueError: if there is none, one is malformed, or two are of the same photo.
        OSError: if one cannot be read.
    """
    rows: dict[str, tuple[str, ...]] = {}
    for path in sorted(folder.glob("*.xml")):
        found = read_annotation(path)
        if found.image in rows:
            raise ValueError(f"{path}: expected each image once, got {found.image!r} again")
        rows[found.image] = found.labels
    if not rows:
        raise ValueError(f"expected *.xml files in {folder}, got none")
    return rows
