"""Is a download whole? What can be told from the files themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from PIL import Image

from models.data.archives import Archive
from models.data.official import spread
from models.data.sample import Sample
from models.images import ImageError, check_image

# Shows work that has a title and so many steps; what it gives is called after each.
Watch: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[], object]]]

SAMPLE = 100  # photos of a data set that are read whole


def check_photos(
    samples: Sequence[Sample],
    size_of: Callable[[str], tuple[int, int]],
    *,
    thorough: bool,
    watch: Watch,
    suspects: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Walk through all data of some photos, and compare their sizes with what their annotations say.

    Args:
        samples: the photos, of one folder.
        size_of: (height, width) by stem.
        thorough: look at all of them, not at a hundred.
        watch: shows how far it is.
        suspects: photos that are always looked at, by stem, with what to do if they are damaged.

    Returns:
        A line on what was checked.

    Raises:
        ValueError: if a photo is damaged or of another size; it names the first and says how many.
        OSError: if one cannot be read.
    """
    chosen = set(spread(samples, None if thorough else SAMPLE))
    chosen |= {sample for sample in samples if sample.stem in suspects}
    wrong = []
    with watch("read photos", len(chosen)) as advance:
        for sample in sorted(chosen, key=lambda each: each.stem):
            try:
                header = check_image(sample.path.read_bytes())
                found, expected = (header.height, header.width), size_of(sample.stem)
                if found != expected:
                    wrong.append(
                        f"{found[1]} x {found[0]} pixels instead of {expected[1]} x {expected[0]} in {sample.path}"
                    )
            except ImageError as error:
                wrong.append(f"{sample.path}: {error}{suspects.get(sample.stem, '')}")
            advance()
    if wrong:
        raise ValueError(
            f"expected whole photos of the size that their annotations say, got {wrong[0]} "
            f"({len(wrong)} of {len(chosen)} such)"
        )
    return f"{samples[0].path.parent}: {len(samples)} photos, {len(chosen)} of them read whole"


def picture_size(path: Path) -> tuple[int, int]:
    """Return a picture's (height, width) from its header.

    Raises:
        OSError: if it is no picture, or cannot be read.
    """
    with Image.open(path) as picture:
        return picture.height, picture.width


def check_archives(root: Path, archives: Iterable[Archive], *, watch: Watch) -> str:
    """Compare the archives that lie in a folder with their published MD5; returns a line on them.

    Raises:
        ValueError: if one differs.
        OSError: if one cannot be read.
    """
    there = [each for each in archives if (root / each.name).is_file()]
    with watch("read archives", len(there)) as advance:
        for archive in there:
            with (root / archive.name).open("rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
            if found != archive.md5:
                raise ValueError(
                    f"expected the MD5 {archive.md5} of {root / archive.name}, got {found}; download it again"
                )
            advance()
    return f"{root}: {len(there)} archives, with the published MD5"
