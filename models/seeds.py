"""Randomness that hangs on what is done and not on what was done before, so that a run can go on anywhere."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*numbers: int) -> int:
    """Return a seed, in [0, 2^63), that depends on all numbers and their order."""
    state = np.random.SeedSequence([number % 2**64 for number in numbers])
    return int(state.generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed, for a while, the sources that augmentation libraries draw from: random, NumPy and torch on the CPU."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
