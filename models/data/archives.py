"""What is downloaded where from: the archives of PASCAL VOC 2012 and MS COCO 2014."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Archive:
    """A file that a data set is published as.

    Attributes:
        name: of the file.
        url: where it lies.
        md5: of the file, as loaders of these data sets have published it.
    """

    name: str
    url: str
    md5: str

    def hint(self, root: Path | None = None) -> str:
        """Say where to get it and what to do with it: to unpack it in a folder, or again."""
        place = "again" if root is None else f"in {root}"
        return f"unpack {self.name} (from {self.url}, md5 {self.md5}) {place}"


VOC_ARCHIVE = Archive(
    "VOCtrainval_11-May-2012.tar",
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    "6cd6e144f989b92b3379bac3b3de84fd",
)
SBD_ARCHIVE = Archive(
    "benchmark.tgz",
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    "82b4d87ceb2ed10f6038a1cba92111cb",
)
COCO_PHOTOS = {
    "train": Archive(
        "train2014.zip",
        "http://images.cocodataset.org/zips/train2014.zip",
        "0da8c0bd3d6becc4dcb32757491aca88",
    ),
    "val": Archive(
        "val2014.zip",
        "http://images.cocodataset.org/zips/val2014.zip",
        "a3d79f5ed8d289b7a7554ce06a5782b3",
    ),
}
COCO_ANNOTATIONS = Archive(
    "annotations_trainval2014.zip",
    "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
    "0a379cfc70b0e71301e0f377548639bd",
)
