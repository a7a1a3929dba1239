"""The refiners that exist, by name; imports no torch, so that the API can check a request."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

NO_REFINER: Final = "none"

# Name → "module:factory"; the factory takes the image's `Surroundings` and returns a Refiner. A new refiner is
# one file and one line here: the command line, the service and the contract tests read this table.
REFINERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "pamr": "models.refine.pamr:build",
        "dense_crf": "models.refine.dense_crf:build",
        "dense_crf_coco": "models.refine.dense_crf:build_coco",
        "random_walk": "models.refine.random_walk:build",
        "region_vote": "models.refine.region_vote:build",
    }
)

# Which of them ask for the mask generator's features (an affinity), and which for region proposals.
NEED_FEATURES: Final = frozenset({"random_walk"})
NEED_REGIONS: Final = frozenset({"region_vote"})


def parse_chain(chain: str) -> tuple[str, ...]:
    """Split ``"a+b"`` into the names of the refiners to run, first to last.

    Args:
        chain: names from `REFINERS` joined by ``+``, or ``"none"``.

    Returns:
        The names; empty for ``"none"``.

    Raises:
        ValueError: for an unknown or empty name, for ``"none"`` beside another name, and for a
            name that comes twice (so a request cannot ask for a thousand passes).
    """
    if chain == NO_REFINER:
        return ()
    names = tuple(chain.split("+"))
    known = ", ".join((NO_REFINER, *REFINERS))
    for name in names:
        if name not in REFINERS:
            raise ValueError(f"expected one of {known}, or a chain joined by '+', got {chain!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"expected each refiner at most once, got {chain!r}")
    return names
