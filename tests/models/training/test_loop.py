from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from models.training.checkpoint import Checkpoint
from models.training.distributed import Processes
from models.training.loop import LossesOf, Optimization, ParameterGroup, Step, fit, micro_batches
from models.training.prompts import RegionBatches
from tests.conftest import CPU

BatchT = TypeVar("BatchT")


class Listed(list[BatchT]):
    def epoch(self, number: int, *, skip: int = 0) -> Iterator[BatchT]:
        return iter(self[skip:])


def minimize(
    parameters: Iterable[nn.Parameter],
    losses_of: LossesOf[BatchT],
    optimization: Optimization,
    batches: Sequence[BatchT] = (0,),
    **options: Any,
) -> list[Step]:
    steps: list[Step] = []
    groups = [ParameterGroup(parameters)]
    fit(groups, Listed(batches), losses_of, optimization, on_step=steps.append, **options)
    return steps


def quadratic(epochs: int = 3, rate: float = 0.1, factor: float = 1.0, **options: object) -> tuple[float, list[Step]]:
    weight = nn.Parameter(torch.tensor(1.0))
    steps = minimize(
        [weight],
        lambda batch: {"square": weight.square() * batch, "zero": weight * 0},
        Optimization(epochs, rate, 0.0, **options),
        [factor, factor],
    )
    return weight.item(), steps


def test_loop_minimizes_and_reports() -> None:
    weight, steps = quadratic()
    assert weight < 1
    assert [(step.epoch, step.step) for step in steps] == [(epoch, number) for epoch in range(3) for number in range(2)]
    assert steps[0].losses == {"square": 1.0, "zero": 0.0, "loss": 1.0}
    # Cosine decay, stepped per epoch: 0.1 (1 + cos(π e / 3)) / 2
    assert [step.learning_rate for step in steps[::2]] == pytest.approx([0.1, 0.075, 0.025])


def test_poly_decay_is_stepped_per_step() -> None:
    _, steps = quadratic(epochs=2, schedule="poly")
    # (1 - t)^0.9 with t = 0, 1/4, 2/4, 3/4
    expected = [0.1, 0.1 * 0.75**0.9, 0.1 * 0.5**0.9, 0.1 * 0.25**0.9]
    assert [step.learning_rate for step in steps] == pytest.approx(expected)


def test_no_epoch_changes_nothing() -> None:
    assert quadratic(epochs=0) == (1.0, [])


def test_loop_refuses_what_cannot_learn() -> None:
    with pytest.raises(FloatingPointError, match=r"expected a finite loss in epoch 0, step 0, got .*nan"):
        quadratic(factor=float("nan"))
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    with pytest.raises(ValueError, match="got 0 parameters, 1 batches"):
        minimize([frozen], lambda _: {}, Optimization(1, 1, 0))


def test_groups_learn_at_their_share() -> None:
    fast, slow = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    fit(
        [ParameterGroup([fast]), ParameterGroup([slow], 0.1)],
        Listed([0]),
        lambda _: {"sum": (fast + slow).sum()},
        Optimization(1, 0.5, 0.0),
        on_step=lambda _: None,
    )
    # AdamW's first step is the learning rate, whatever the gradient.
    assert (fast.item(), slow.item()) == pytest.approx((-0.5, -0.05))


def test_large_gradients_are_clipped() -> None:
    seen: list[float] = []

    def watched(limit: float | None) -> float:
        weight = nn.Parameter(torch.zeros(1))
        weight.register_post_accumulate_grad_hook(lambda each: seen.append(float(each.grad or 0)))
        optimization = Optimization(1, 1e-3, 0.0, max_gradient_norm=limit)
        minimize([weight], lambda _: {"line": weight.sum() * 100}, optimization)
        assert weight.grad is not None
        return weight.grad.item()

    assert watched(None) == 100
    assert watched(0.01) == pytest.approx(0.01)
    assert seen == [100, 100]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_computes_in_half_and_keeps_single(precision: str) -> None:
    layer = nn.Linear(4, 1)
    dtypes: list[torch.dtype] = []

    def losses_of(batch: Tensor) -> Mapping[str, Tensor]:
        answer = layer(batch)
        dtypes.append(answer.dtype)
        return {"square": answer.square().mean()}

    optimization = Optimization(20, 0.05, 0.0, precision=precision)
    steps = minimize(layer.parameters(), losses_of, optimization, [torch.ones(2, 4)])
    assert set(dtypes) == {getattr(torch, precision)}
    assert layer.weight.dtype == torch.float32
    assert steps[-1].losses["loss"] < steps[0].losses["loss"]


class Killed(Exception):  # noqa: N818 (not an error: what a kill looks like from inside)
    pass


def kill_at(epoch: int, number: int) -> Callable[[Step], None]:
    def kill(step: Step) -> None:
        if (step.epoch, step.step) == (epoch, number):
            raise Killed

    return kill


class Network(nn.Module):
    """With weights, batch statistics and dropout: all that a run that goes on must take up."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.layers(rows)
        return answer


ROWS = torch.randn(24, 3, generator=torch.Generator().manual_seed(5))


def train(
    folder: Path, *, kill_at: int | None = None, fingerprint: str = "this", every: int = 500
) -> tuple[Network, list[Step]]:
    network, steps = Network(), []
    torch.manual_seed(1)

    def on_step(step: Step) -> None:
        steps.append(step)
        if len(steps) == kill_at:
            raise Killed

    fit(
        [ParameterGroup(network.parameters())],
        RegionBatches(24, batch_size=8, seed=2),
        lambda rows: {"square": network(ROWS[rows]).square().mean()},
        Optimization(4, 0.01, 0.01),
        on_step=on_step,
        checkpoint=Checkpoint(folder / "checkpoint.pt", network, fingerprint, every=every),
    )
    return network, steps


@pytest.mark.parametrize("every", [1, 2, 500])
@pytest.mark.parametrize("kill_at", [1, 2, 3, 8])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path, kill_at: int, every: int) -> None:
    (tmp_path / "whole").mkdir()
    whole, steps = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path, kill_at=kill_at, every=every)
    torch.rand(7)  # whatever else the process drew
    resumed, rest = train(tmp_path, every=every)
    epochs, more = divmod(kill_at - 1, 3)  # of three steps; the one that was killed is not kept
    done = 3 * epochs + every * (more // every)
    assert rest == steps[done:]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_checkpoints_of_others_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, kill_at=5)
    with pytest.raises(ValueError, match="delete it to start anew"):
        train(tmp_path, fingerprint="other")
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="expected a checkpoint, got a damaged"):
        train(tmp_path)


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(1))
    holder = nn.ParameterList([weight])
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", holder, "same")
    steps: list[Step] = []
    for epochs in (1, 3):
        optimization = Optimization(epochs, 0.1, 0)
        loss: LossesOf[int] = lambda _: {"square": weight.square().sum()}  # noqa: E731
        steps += minimize([weight], loss, optimization, checkpoint=checkpoint)
    assert [step.epoch for step in steps] == [0, 1, 2]


def test_only_the_leading_process_writes(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(1))
    holder = nn.ParameterList([weight])
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", holder, "", writes=False)
    optimization = Optimization(1, 0.1, 0)
    minimize([weight], lambda _: {"line": weight.sum()}, optimization, checkpoint=checkpoint)
    assert not any(tmp_path.iterdir())


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
        split = micro_batches(lambda each: each, size=size, processes=Processes(), device=CPU)
        optimization = Optimization(3, 0.1, 0.0)
        batches = [(rows, counts)]
        steps = minimize(layer.parameters(), mean_over_counted, optimization, batches, split=split)
        learned.append(layer.weight.detach())
        reports.append([step.losses["square"] for step in steps])
    for weight, losses in zip(learned[1:], reports[1:], strict=True):
        torch.testing.assert_close(weight, learned[0])
        assert losses == pytest.approx(reports[0], rel=1e-5)


def test_parts_without_anything_to_learn_keep_their_weight() -> None:
    cut = micro_batches(lambda each: each > 0, size=2, processes=Processes(), device=CPU)
    parts = cut((torch.zeros(3, 1), torch.zeros(3, 1)))
    assert [len(images) for (images, _), _ in parts] == [2, 1]
    assert all(weight == 0 for _, weight in parts)
