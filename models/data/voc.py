"""PASCAL VOC 2012 with the additional masks of SBD, in their original layout, and VOC's XML annotations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from models.data.classes import ClassInfo, ClassList, Sample
from models.data.official import VOC_ARCHIVE, Listed, evenly_spaced, listed_samples, official_list
from models.data.photos import LabelRow, list_files

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
VOC_CLASSES = ClassList(tuple(ClassInfo(index, name) for index, name in enumerate(_NAMES.split(" "), start=1)))
VOC_SPLITS = ("train_aug", "train", "val")


@dataclass(frozen=True)
class VocFolder:
    """Paths of an unpacked download; ``additional`` are more label maps, ``STEM.mat`` of SBD or ``STEM.png``."""

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
        """Return VOC's own list file of a split, "train" or "val"."""
        return self.root / "ImageSets" / "Segmentation" / f"{split}.txt"

    def label_map(self, stem: str) -> Path | None:
        """Return a photo's ground truth, preferably VOC's own; None if there is none."""
        paths = [self.root / "SegmentationClass" / f"{stem}.png"]
        if self.additional is not None:
            paths += [self.additional / f"{stem}{suffix}" for suffix in (".png", ".mat")]
        return next((path for path in paths if path.is_file()), None)


def find_voc(root: Path) -> VocFolder:
    """Find VOC 2012, and SBD if it is there, from the folder that both were unpacked in or from ``VOC2012`` itself."""
    for folder in (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root):
        if (folder / "JPEGImages").is_dir():
            break
    else:
        raise ValueError(f"expected VOCdevkit/VOC2012/JPEGImages in {root}, got none; {VOC_ARCHIVE.hint(root)}")
    parents = dict.fromkeys((root, folder, *folder.resolve().parents[:2]))
    candidates = [
        parent / name for parent in parents for name in ("SegmentationClassAug", "benchmark_RELEASE/dataset/cls")
    ]
    return VocFolder(folder, next((path for path in candidates if path.is_dir()), None))


@cache
def voc_list(split: str) -> tuple[Listed, ...]:
    """Return the official list "train_aug" (10,582 photos, with SBD's), "train" (1,464) or "val" (1,449)."""
    # Photo 2007_000032 has the number 2007000032.
    return official_list("voc2012", split, lambda number: f"{number // 10**6}_{number % 10**6:06d}")


def read_voc(root: Path, split: str, *, photos: int | None = None) -> list[Sample]:
    """Return the photos of a split, at most ``photos``, with their labels as channels of ``VOC_CLASSES``."""
    return listed_samples(find_voc(root).photos, evenly_spaced(voc_list(split), photos), VOC_ARCHIVE)


def parse_xml(content: str | bytes) -> Element:
    """Return the root of untrusted XML; no document type, as its entities could expand to gigabytes."""
    try:
        return fromstring(content, forbid_dtd=True)
    except DefusedXmlException as error:
        raise ValueError("a document type") from error
    except (ParseError, LookupError) as error:  # LookupError: unknown encoding
        raise ValueError(str(error)) from error


@dataclass(frozen=True)
class _Annotation:
    """A photo's file name, (height, width) if given, and its objects' names, each once, difficult ones included."""

    image: str
    size: tuple[int, int] | None
    labels: tuple[str, ...]


def read_annotation(path: Path) -> _Annotation:
    """Read a photo's XML file."""
    try:
        root = parse_xml(path.read_bytes())
        if root.tag != "annotation":
            raise ValueError(f"no annotation but {root.tag!r}")
    except ValueError as error:
        raise ValueError(f"expected an annotation of PASCAL VOC in {path}, got {error}") from error
    image = (root.findtext("filename") or "").strip() or path.stem
    # Parts of objects, such as heads and feet, have names too, but elsewhere.
    names = [(name.text or "").strip() for name in root.iterfind("object/name")]
    return _Annotation(image, _size(root), tuple(dict.fromkeys(name for name in names if name)))


def _size(root: Element) -> tuple[int, int] | None:
    """Return (height, width), which some tools write as 451.0 or leave empty."""
    try:
        height, width = (round(float(root.findtext(f"size/{side}", ""))) for side in ("height", "width"))
    except (ValueError, OverflowError):
        return None
    return height, width


def read_annotations(folder: Path) -> list[LabelRow]:
    """Read the XML files of a folder and its subfolders: a row each."""
    paths = [folder / name for name in list_files(folder) if name.lower().endswith(".xml")]
    if not paths:
        raise ValueError(f"expected *.xml files in {folder}, got none")
    found = [read_annotation(path) for path in paths]
    return [LabelRow(each.image, each.labels, path.stem) for path, each in zip(paths, found, strict=True)]
