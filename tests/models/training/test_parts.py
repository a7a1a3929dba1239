"""Batches in parts teach what whole ones would."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from models.training.distributed import Processes
from models.training.loop import Group, Optimization, Step, fit, weighted_parts
from tests.conftest import CPU
from tests.models.training.test_loop import Listed


def test_parts_of_a_batch_teach_what_the_whole_would() -> None:
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(3))
    counts = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0, 0.0])

    def mean_over_counted(batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        values, weights = batch
        squares = layer(values)[:, 0].square() * weights
        return {"square": squares.sum() / weights.sum().clamp(min=1)}

    learned, reports = [], []
    for size in (None, 4, 2, 1):
        layer = nn.Linear(3, 1)
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
        steps: list[Step] = []
        fit(
            [Group(layer.parameters())],
            Listed([(rows, counts)]),
            mean_over_counted,
            Optimization(3, 0.1, 0.0),
            on_step=steps.append,
            parts_of=weighted_parts(
                lambda weights: weights, size=size, processes=Processes(), device=CPU
            ),
        )
        learned.append(layer.weight.detach())
        reports.append([step.losses["square"] for step in steps])
    for weight, losses in zip(learned[1:], reports[1:], strict=True):
        torch.testing.assert_close(weight, learned[0])
        assert losses == pytest.approx(reports[0], rel=1e-5)


def test_parts_without_anything_to_learn_keep_their_weight() -> None:
    cut = weighted_parts(lambda each: each > 0, size=2, processes=Processes(), device=CPU)
    parts = cut((torch.zeros(3, 1), torch.zeros(3, 1)))
    assert [len(part.batch[0]) for part in parts] == [2, 1]
    assert all(part.weight == 0 for part in parts)
