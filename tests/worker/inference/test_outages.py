"""Redis was away for long: nobody is taken for dead."""

from __future__ import annotations

from worker.inference.worker import Calm


def test_nobody_is_taken_for_dead_right_after_an_outage() -> None:
    seconds = [100.0]
    calm = Calm(lease=3, pause=1.5, clock=lambda: seconds[0])

    def beats(*pauses: float) -> list[bool]:
        answers = []
        for pause in pauses:
            seconds[0] += pause
            answers.append(calm.all_have_beaten())
        return answers

    assert beats(0, 1, 1, 1, 1) == [False, False, False, True, True]
    assert beats(25, 1, 1, 1) == [False, False, False, True]
