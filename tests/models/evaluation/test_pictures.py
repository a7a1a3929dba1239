from pathlib import Path

from models.data.classes import Sample
from models.evaluation.plots import choose


def test_chosen_photos_spread_over_the_classes() -> None:
    labels = {"a": (0, 1), "b": (0,), "c": (0,), "d": (1,), "e": (2, 3), "f": (3, 2, 1), "g": ()}
    photos = [Sample(Path(f"{name}.jpg"), channels) for name, channels in labels.items()]

    def chosen(count: int) -> str:
        return "".join(each.stem for each in choose(photos, count))

    assert chosen(0) == ""
    assert chosen(1) == "b"
    assert chosen(2) == "be"  # classes 0 and 2
    assert chosen(4) == "bdef"  # each class once, the simplest photo first
    assert chosen(5) == "bdefc"  # and round again
    assert sorted(chosen(99)) == list("abcdef")
    assert choose([photos[-1]], 3) == []
