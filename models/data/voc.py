"""PASCAL VOC 2012 with the additional masks of SBD, in their original layout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from models.data.classes import ClassInfo, ClassList, Sample
from models.data.official import VOC_ARCHIVE, Listed, listed_samples, official_list, spread

_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
VOC_CLASSES = ClassList(
    tuple(ClassInfo(index, name) for index, name in enumerate(_NAMES.split(" "), start=1))
)
VOC_SPLITS = ("train_aug", "train", "val")


@dataclass(frozen=True)
class VocFolder:
    """Where a download keeps what.

    Attributes:
        root: ``VOCdevkit/VOC2012``.
        additional: folder of more label maps, ``STEM.mat`` of SBD or ``STEM.png``; None if there is none.
    """

    root: Path
    additional: Path | None

    @property
    def photos(self) -> Path:
        """Folder of the photos."""
        return self.root / "JPEGImages"

    def annotation(self, stem: str) -> Path:
        """Return the XML file of a photo."""
        return self.root / "Annotations" / f"{stem}.xml"

    def list_file(self, split: str) -> Path:
        """Return the file in which VOC itself lists a split, "train" or "val"."""
        return self.root / "ImageSets" / "Segmentation" / f"{split}.txt"

    def label_map(self, stem: str) -> Path | None:
        """Return the file of a photo's true label map, VOC's own before others; None if there is none."""
        places = [self.root / "SegmentationClass" / f"{stem}.png"]
        if self.additional is not None:
            places += [self.additional / f"{stem}{suffix}" for suffix in (".png", ".mat")]
        return next((place for place in places if place.is_file()), None)


def find_voc(root: Path) -> VocFolder:
    """Find VOC 2012, and SBD beside it, below the folder that both were unpacked in, or from ``VOC2012`` itself.

    Raises:
        ValueError: if there is no VOC 2012; it says what to download.
    """
    for folder in (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root):
        if (folder / "JPEGImages").is_dir():
            break
    else:
        raise ValueError(
            f"expected VOCdevkit/VOC2012/JPEGImages in {root}, got none; {VOC_ARCHIVE.hint(root)}"
        )
    around = dict.fromkeys((root, folder, *folder.resolve().parents[:2]))
    places = [
        place
        for each in around
        for place in (each / "SegmentationClassAug", each / "benchmark_RELEASE" / "dataset" / "cls")
    ]
    return VocFolder(folder, next((place for place in places if place.is_dir()), None))


@cache
def voc_list(split: str) -> tuple[Listed, ...]:
    """Return the official list "train_aug" (10,582 photos, SBD's with them), "train" (1,464) or "val" (1,449).

    Raises:
        ValueError: if there is no such split.
    """
    # 2007_000032 is number 2,007,000,032.
    return official_list("voc2012", split, lambda number: f"{number // 10**6}_{number % 10**6:06d}")


def read_voc(root: Path, split: str, *, photos: int | None = None) -> list[Sample]:
    """Return the photos of a split with their image-level labels, as channels of ``VOC_CLASSES``.

    Args:
        root: as ``find_voc`` takes it.
        split: as ``voc_list`` takes it.
        photos: take so many only, spread over the list.

    Raises:
        ValueError: if there is no such split, or something is missing in the download.
        OSError: if it cannot be read.
    """
    return listed_samples(find_voc(root).photos, spread(voc_list(split), photos), VOC_ARCHIVE)


# XML from outside, which can neither grow nor fetch anything.

_DOCTYPE = "<!DOCTYPE"


class _NoDoctype(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        del name, pubid, system
        raise ValueError("a document type")


def parse_xml(content: str | bytes) -> ElementTree.Element:
    """Return the root of an XML document.

    A document type may define words that unfold to gigabytes, and no file that is read here has one.

    Raises:
        ValueError: if it is no XML, or has a document type.
    """
    # The parser's own word comes too late: expat unfolds what follows before it lets go, up to some megabytes. What it
    # alone sees is a document type in an encoding that is neither like ASCII nor UTF-16.
    known = _DOCTYPE in content if isinstance(content, str) else _has_doctype(content)
    if known:
        raise ValueError("a document type")
    try:
        return ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctype()))
    except (ElementTree.ParseError, LookupError) as error:  # the latter of an unknown encoding
        raise ValueError(str(error)) from error


def _has_doctype(content: bytes) -> bool:
    return any(_DOCTYPE.encode(each) in content for each in ("ascii", "utf-16-le", "utf-16-be"))


# PASCAL VOC's annotations: an XML file a photo.


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
