"""Where the repository's files lie."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PHOTO: Final = ROOT / "benchmarks" / "photos" / "cat.jpg"
