"""PASCAL VOC 2012 with the additional masks of SBD, in their original layout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from models.data.archives import VOC_ARCHIVE
from models.data.classes import ClassInfo, ClassList
from models.data.official import Listed, listed_samples, official_list, spread
from models.data.sample import Sample

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
