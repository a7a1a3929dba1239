"""Whether a device computes what the CPU does: differences, tolerances, precisions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.gpu.table import Item, Outcome
from models.inference.predictor import autocast

CPU: Final = torch.device("cpu")
FLOAT32: Final = "float32"
TF32: Final = "tf32"

Outputs = Mapping[str, Tensor]


GRADIENTS: Final = "gradients"
"""The name of an output that has a tolerance of its own."""


@dataclass(frozen=True)
class Tolerance:
    """The largest allowed difference of numbers, as a share of the highest one, and the share of other pixels."""

    values: float
    # They flow to the highest and the lowest place of each mask alone, and rounding may choose another.
    gradients: float
    pixels: float

    def of(self, name: str, output: Tensor) -> float:
        """Return the tolerance of an output."""
        if not output.is_floating_point():
            return self.pixels
        return self.gradients if name == GRADIENTS else self.values


# Against the CPU in float32. By itself torch runs float32 convolutions on a GPU in TF32, whose numbers have 10 bits:
# that would hide real faults behind its rounding, so "float32" is without it, and "tf32" is as torch does by itself.
# Two ways to compute float32 on a CPU (with oneDNN and without) differ by at most 4e-6 in any of the cases.
TOLERANCES: Final[Mapping[str, Tolerance]] = MappingProxyType(
    {
        FLOAT32: Tolerance(values=1e-4, gradients=1e-3, pixels=1e-3),
        TF32: Tolerance(values=3e-2, gradients=0.2, pixels=3e-2),
        "bfloat16": Tolerance(values=0.1, gradients=0.6, pixels=0.1),
        "float16": Tolerance(values=3e-2, gradients=0.2, pixels=3e-2),
    }
)


@dataclass(frozen=True)
class Case:
    """What is computed on both: the same inputs and weights on a device and in a precision, to tensors by name."""

    name: str
    run: Callable[[torch.device, str], Outputs]
    precisions: tuple[str, ...] = tuple(TOLERANCES)


def comparisons(cases: Iterable[Case], device: torch.device) -> Iterator[Item]:
    """Return a comparison for each case and precision, all with the CPU in float32.

    A CPU has no TF32, and is not used in float16, which it emulates at a hundredth of the speed.
    """
    on_cpu = {FLOAT32, "bfloat16"}
    for case in cases:
        expected = cache(partial(case.run, CPU, FLOAT32))
        for precision in case.precisions:
            if device.type != "cpu" or precision in on_cpu:
                yield Item(case.name, precision, partial(_compare, case, precision, device, expected))


def _compare(case: Case, precision: str, device: torch.device, expected: Callable[[], Outputs]) -> Outcome:
    with same_random_numbers(), tf32(precision == TF32):
        return judge(case.run(device, precision), expected(), TOLERANCES[precision])


def judge(found: Outputs, expected: Outputs, tolerance: Tolerance) -> Outcome:
    """Return the output that differs most for its tolerance, and whether that is too much; ValueError for others."""
    if found.keys() != expected.keys():
        raise ValueError(f"expected outputs {sorted(expected)}, got {sorted(found)}")
    allowed = {name: tolerance.of(name, each) for name, each in expected.items()}
    differences = {name: difference(each, expected[name]) for name, each in found.items()}
    worst = max(differences, key=lambda name: differences[name] / allowed[name])
    failed = differences[worst] > allowed[worst]
    return Outcome(f"{worst}: {differences[worst]:.2g} {'>' if failed else '≤'} {allowed[worst]:g}", failed=failed)


def difference(found: Tensor, expected: Tensor) -> float:
    """Return how far a tensor is from the expected one of its shape; infinite if something is not finite.

    For numbers it is the largest difference as a share of the highest absolute expected one, for integers (label maps)
    the share of unequal ones. ValueError if shapes or kinds differ.
    """
    found, expected = found.detach().cpu(), expected.detach().cpu()
    if found.shape != expected.shape or found.is_floating_point() != expected.is_floating_point():
        raise ValueError(f"expected {tuple(expected.shape)} {expected.dtype}, got {tuple(found.shape)} {found.dtype}")
    if not found.is_floating_point():
        return float((found != expected).double().mean())
    if not (found.isfinite().all() and expected.isfinite().all()):
        return float("inf")
    highest = expected.double().abs().max()
    return float((found.double() - expected.double()).abs().max() / highest.clamp(min=1e-12))


def computing(precision: str, device: torch.device) -> torch.autocast:
    """Return a context that computes in one of ``TOLERANCES``, as the predictor does; weights stay float32."""
    return autocast(amp_precision(precision), device=device)


def amp_precision(precision: str) -> str:
    """Return what the library calls a precision: TF32 is a way to compute its float32."""
    return FLOAT32 if precision == TF32 else precision


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let convolutions of float32 run in TF32 in the block, or not; products of matrices never do, as torch has it."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = allowed, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


class same_random_numbers(TorchFunctionMode):  # noqa: N801 (used as a function, like torch.no_grad)
    """Draw random numbers on the CPU and move them: generators of devices give others. Mask2Former's loss has some."""

    def __torch_function__(
        self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch; see TorchFunctionMode."""
        options = kwargs or {}
        if function is torch.rand and options.get("device") is not None:
            return torch.rand(*args, **{**options, "device": CPU}).to(options["device"])
        return function(*args, **options)
