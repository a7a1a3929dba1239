import math
from pathlib import Path
from typing import Any

import pytest

from models.data.classes import Sample
from models.evaluation import plots


def drawn(lines: list[plots.Line], **options: Any) -> plots.Plot:
    plot = plots.draw(lines, title="t", x_name="x", **options)
    assert plot is not None
    return plot


def test_a_line_lies_where_its_values_say() -> None:
    plot = drawn([plots.Line("loss", [(0, 2.0), (1, 1.0), (2, 0.0)])])
    [line] = plot.lines
    left, right, top, bottom = plots.LEFT, plots.WIDTH - plots.RIGHT, plots.TOP, plots.HEIGHT - plots.BOTTOM
    middle, half = (left + right) / 2, (top + bottom) / 2
    assert line.points == f"{left},{top} {middle:g},{half:g} {right},{bottom}"
    assert [(tick.at, tick.label) for tick in plot.x_ticks][::4] == [(left, "0.0"), (right, "2.0")]
    assert (plot.y_ticks[0].at, plot.y_ticks[-1].at) == (bottom, top)


def test_axes_end_at_ticks_around_all_lines() -> None:
    lines = [plots.Line("a", [(0.05, 3.4), (0.95, 19.6)]), plots.Line("b", [(0.5, 23.2)])]
    plot = drawn(lines, marks=[(0.5, 23.2)])
    assert [tick.label for tick in plot.x_ticks] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [tick.label for tick in plot.y_ticks] == ["0", "5", "10", "15", "20", "25"]
    x, y = plot.marks[0]
    assert plot.lines[1].points == f"{x:g},{y:g} {x:g},{y:g}"  # one point is a dot


@pytest.mark.parametrize(("low", "high"), [(0, 3), (1e-8, 6.4e-5), (-1.5, 2), (1e6, 3e6), (1.23401, 1.23409)])
def test_ticks_are_few_and_told_apart(low: float, high: float) -> None:
    step = plots._nice_step(low, high)
    assert (high - low) / step <= 5.01
    assert f"{step:.0e}"[0] in "125"
    plot = drawn([plots.Line("a", [(0, low), (1, high)])])
    labels = [tick.label for tick in plot.y_ticks]
    assert 2 <= len(set(labels)) == len(labels) <= 8
    assert all(len(label) <= 8 for label in labels)


@pytest.mark.parametrize("value", [0.0, 5.0, -3e-7])
def test_a_constant_has_room(value: float) -> None:
    plot = drawn([plots.Line("a", [(0, value), (1, value)])])
    heights = {float(place.split(",")[1]) for place in plot.lines[0].points.split()}
    assert len(heights) == 1
    assert all(plots.TOP < height < plots.HEIGHT - plots.BOTTOM for height in heights)


def test_what_is_not_finite_is_left_out() -> None:
    plot = drawn([plots.Line("a", [(0, math.nan), (1, 2.0), (2, math.inf)])])
    assert len(plot.lines[0].points.split()) == 2  # the one point, twice
    assert plots.draw([plots.Line("a", [(0, math.nan)])], title="t", x_name="x") is None
    assert plots.draw([], title="t", x_name="x") is None


def test_thinning_takes_means_of_neighbors() -> None:
    points = [(float(x), 2.0 * x) for x in range(7)]
    assert plots.thin(points, most=7) == points
    assert plots.thin(points, most=3) == [(1, 2), (4, 8), (6, 12)]
    assert plots.thin([], most=3) == []
    assert len(plots.thin([(x, x) for x in range(1001)], most=200)) <= 200


def test_chosen_photos_spread_over_the_classes() -> None:
    labels = {"a": (0, 1), "b": (0,), "c": (0,), "d": (1,), "e": (2, 3), "f": (3, 2, 1), "g": ()}
    photos = [Sample(Path(f"{name}.jpg"), channels) for name, channels in labels.items()]

    def chosen(count: int) -> str:
        return "".join(each.stem for each in plots.choose_samples(photos, count))

    assert chosen(0) == ""
    assert chosen(1) == "b"
    assert chosen(2) == "be"  # classes 0 and 2
    assert chosen(4) == "bdef"  # each class once, the simplest photo first
    assert chosen(5) == "bdefc"  # and round again
    assert sorted(chosen(99)) == list("abcdef")
    assert plots.choose_samples([photos[-1]], 3) == []
