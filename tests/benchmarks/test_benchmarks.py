"""The programs that make the figures of benchmarks/README.md: each can at least be started."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import benchmarks

PROGRAMS = [each.name for each in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")]


@pytest.mark.parametrize("name", PROGRAMS)
def test_all_that_it_imports_is_there(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "litserve":  # optional, see pyproject.toml
            raise
        pytest.skip("litserve is not installed")
