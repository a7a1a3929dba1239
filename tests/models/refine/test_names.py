import subprocess
import sys

import pytest

from models.refine import REFINERS, parse_chain


def test_none_is_the_empty_chain() -> None:
    assert parse_chain("none") == ()


def test_a_name_is_a_chain_of_one() -> None:
    assert parse_chain("pamr") == ("pamr",)


@pytest.mark.parametrize("chain", ["", "crayon", "PAMR", "pamr+", "pamr+crayon", "none+pamr", " "])
def test_unknown_names_are_refused_with_the_known_ones(chain: str) -> None:
    with pytest.raises(ValueError, match="expected one of none, pamr") as error:
        parse_chain(chain)
    assert repr(chain) in str(error.value)


def test_a_refiner_may_come_only_once() -> None:
    with pytest.raises(ValueError, match="at most once"):
        parse_chain("pamr+pamr")


def test_names_are_usable_in_a_chain() -> None:
    assert parse_chain("+".join(REFINERS)) == tuple(REFINERS)
    assert not any("+" in name or name == "none" for name in REFINERS)


def test_checking_a_chain_imports_no_torch() -> None:
    code = (
        "import sys; from models.refine import build_refiner, parse_chain; parse_chain('pamr');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
