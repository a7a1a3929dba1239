import pytest

from models.io import first_difference


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({}, {}, None),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}, None),
        ({"a": 1, "b": {"c": {"d": 2}}}, {"a": 1, "b": {"c": {"d": 3}}}, "b.c.d: 2 before, 3 now"),
        ({"a": 1}, {"a": 1, "b": "x"}, "b: nothing before, 'x' now"),
        ({"a": None}, {}, "a: None before, nothing now"),
        ({"a": {"b": 1}}, {"a": None}, "a: {'b': 1} before, None now"),
        ({"a": ("x", "y", "z")}, {"a": ["x", "y", "z"]}, None),
        ({"a": ("x", "y", "z")}, {"a": ("x", "w")}, "a.1: 'y' before, 'w' now"),
        ({"a": ("x",)}, {"a": ("x", "w")}, "a.1: nothing before, 'w' now"),
    ],
)
def test_the_first_place_is_named(before: dict[str, object], now: dict[str, object], expected: str | None) -> None:
    assert first_difference(before, now) == expected
