"""Pack the official lists of PASCAL VOC 2012 and MS COCO 2014 into the package's compact form.

    python -m benchmarks.data_lists --data ../shared/data

The folder holds ``voc2012/`` (train_aug_id.txt, train_id.txt, val_id.txt, image_labels.txt) and ``coco2014/``
(train.txt.gz, val.txt.gz), with lines "id class class …".
"""

from __future__ import annotations

import argparse
import gzip
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path

_LISTS = Path(__file__).resolve().parents[1] / "models" / "data" / "lists"


def read_rows(path: Path) -> dict[str, list[int]]:
    """Read lines "id number number …"; numbers by id."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("ascii")
    lines = (line.split() for line in text.splitlines())
    return {name: [int(number) for number in numbers] for name, *numbers in lines}


def voc_lists(folder: Path) -> bytes:
    """Pack VOC 2012."""
    labels = read_rows(folder / "image_labels.txt")
    return pack_lists(
        {
            split: [(int(stem.replace("_", "")), labels[stem]) for stem in read_rows(folder / f"{split}_id.txt")]
            for split in ("train_aug", "train", "val")
        }
    )


def coco_lists(folder: Path) -> bytes:
    """Pack COCO 2014."""
    return pack_lists(
        {
            split: [
                (int(stem.rpartition("_")[2]), channels)
                for stem, channels in read_rows(folder / f"{split}.txt.gz").items()
            ]
            for split in ("train", "val")
        }
    )


def pack_lists(splits: Mapping[str, Sequence[tuple[int, Sequence[int]]]]) -> bytes:
    """Return the content of a list file: for each split the photos' numbers, ascending, with their channels."""
    text = ""
    for split, photos in splits.items():
        text += f"# {split}\n"
        before = 0
        for number, channels in photos:
            text += " ".join(map(str, (number - before, *channels))) + "\n"
            before = number
    return lzma.compress(text.encode("ascii"), preset=9 | lzma.PRESET_EXTREME)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=_LISTS)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("voc2012", voc_lists(arguments.data / "voc2012")),
        ("coco2014", coco_lists(arguments.data / "coco2014")),
    ):
        path = arguments.output / f"{name}.txt.xz"
        path.write_bytes(content)
        print(f"{path}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
