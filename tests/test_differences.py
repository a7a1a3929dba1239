import pytest

from models.differences import first_difference


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({}, {}, None),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}, None),
        ({"a": 1, "b": {"c": {"d": 2}}}, {"a": 1, "b": {"c": {"d": 3}}}, "b.c.d: 2 before, 3 now"),
        ({"a": 1}, {"a": 1, "b": "x"}, "b: nothing before, 'x' now"),
        ({"a": None}, {}, "a: None before, nothing now"),
        ({"a": {"b": 1}}, {"a": None}, "a: {'b': 1} before, None now"),
    ],
)
def test_the_first_place_is_named(
    before: dict[str, object], now: dict[str, object], expected: str | None
) -> None:
    assert first_difference(before, now) == expected
