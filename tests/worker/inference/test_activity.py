"""Whether a worker's main thread gets ahead, and whether its model still works."""

from __future__ import annotations

import pytest

from worker.inference.watchdog import IDLE_SECONDS, LATE_SECONDS, Activity, CanaryError, CanaryWatch


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_silence_is_trouble_when_it_lasts_longer_than_the_step_may(clock: Clock) -> None:
    activity = Activity(clock)
    activity.expect(5)
    clock.now += 5
    assert (activity.silent, activity.overdue(), activity.trouble) == (5, 0, "")
    clock.now += LATE_SECONDS
    assert (activity.overdue(), activity.trouble) == (LATE_SECONDS, "")
    clock.now += 1
    assert activity.overdue() == LATE_SECONDS + 1
    assert activity.trouble == "no progress for 8 s, expected some within 5 s"
    activity.expect(20)
    clock.now += 20
    assert (activity.silent, activity.trouble) == (20, "")


def test_waiting_for_jobs_is_progress_if_it_is_said_again_and_again(clock: Clock) -> None:
    activity = Activity(clock)
    for _ in range(3):
        activity.rest()
        clock.now += IDLE_SECONDS
        assert activity.trouble == ""
    clock.now += LATE_SECONDS + 1
    assert "no progress" in activity.trouble


def test_a_failure_is_for_good(clock: Clock) -> None:
    activity = Activity(clock)
    activity.fail("broken")
    activity.rest()
    assert activity.trouble == "broken"
    assert activity.overdue() == 0


class Canary:
    """Counts how often it was sent."""

    def __init__(self) -> None:
        self.sent = 0
        self.error: Exception | None = None

    def __call__(self) -> None:
        self.sent += 1
        if self.error is not None:
            raise self.error


def watch_of(canary: Canary, clock: Clock, *, interval: float) -> tuple[CanaryWatch, Activity]:
    activity = Activity(clock)
    watch = CanaryWatch(canary, activity, interval=interval, patience=7, clock=clock)
    return watch, activity


def test_the_canary_is_sent_when_nothing_else_proved_the_model(clock: Clock) -> None:
    canary = Canary()
    watch, _ = watch_of(canary, clock, interval=300)
    clock.now += 299
    watch.check()
    assert canary.sent == 0
    clock.now += 1
    watch.check()
    watch.check()
    assert canary.sent == 1
    clock.now += 299
    watch.proved()
    clock.now += 299
    watch.check()
    assert canary.sent == 1


def test_no_canary_where_it_is_turned_off(clock: Clock) -> None:
    canary = Canary()
    watch, _ = watch_of(canary, clock, interval=0)
    clock.now += 1e9
    watch.check()
    assert canary.sent == 0


def test_a_canary_under_way_has_its_own_patience(clock: Clock) -> None:
    watch, activity = watch_of(Canary(), clock, interval=1)
    clock.now += IDLE_SECONDS + 1
    assert activity.overdue() == 1
    watch.check()
    clock.now += 7
    assert activity.overdue() == 0
    clock.now += 1
    assert activity.overdue() == 1


def test_a_canary_that_fails_says_what_failed_and_keeps_internals(clock: Clock) -> None:
    canary = Canary()
    canary.error = RuntimeError("secret internals")
    watch, activity = watch_of(canary, clock, interval=1)
    clock.now += 1
    with pytest.raises(CanaryError, match="the canary image failed: RuntimeError"):
        watch.check()
    assert activity.trouble == "the canary image failed: RuntimeError"
