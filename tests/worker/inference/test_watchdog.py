"""A stall of the main thread is reported, and a model that does not work any more is found out."""

import pytest

from worker.inference.watchdog import IDLE_SECONDS, LATE_SECONDS, PeriodicSelfTest, SelfTestError, StallDetector


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_silence_past_the_deadline_is_an_error(clock: Clock) -> None:
    stall = StallDetector(clock)
    stall.deadline(5)
    clock.now += 5
    assert (stall.silent, stall.overdue(), stall.error) == (5, 0, "")
    clock.now += LATE_SECONDS
    assert (stall.overdue(), stall.error) == (LATE_SECONDS, "")
    clock.now += 1
    assert stall.overdue() == LATE_SECONDS + 1
    assert stall.error == "no progress for 8 s, expected some within 5 s"
    stall.deadline(20)
    clock.now += 20
    assert (stall.silent, stall.error) == (20, "")


def test_waiting_for_jobs_is_progress_if_it_is_noted_again_and_again(clock: Clock) -> None:
    stall = StallDetector(clock)
    for _ in range(3):
        stall.idle()
        clock.now += IDLE_SECONDS
        assert stall.error == ""
    clock.now += LATE_SECONDS + 1
    assert "no progress" in stall.error


def test_a_failure_is_for_good(clock: Clock) -> None:
    stall = StallDetector(clock)
    stall.fail("broken")
    stall.idle()
    assert stall.error == "broken"
    assert stall.overdue() == 0


class Probe:
    """Counts how often the test ran."""

    def __init__(self) -> None:
        self.sent = 0
        self.error: Exception | None = None

    def __call__(self) -> None:
        self.sent += 1
        if self.error is not None:
            raise self.error


def self_test_of(probe: Probe, clock: Clock, *, interval: float) -> tuple[PeriodicSelfTest, StallDetector]:
    stall = StallDetector(clock)
    test = PeriodicSelfTest(probe, stall, interval=interval, patience=7, clock=clock)
    return test, stall


def test_the_model_is_tested_when_no_job_proved_that_it_works(clock: Clock) -> None:
    probe = Probe()
    test, _ = self_test_of(probe, clock, interval=300)
    clock.now += 299
    test.run_if_due()
    assert probe.sent == 0
    clock.now += 1
    test.run_if_due()
    test.run_if_due()
    assert probe.sent == 1
    clock.now += 299
    test.proved()
    clock.now += 299
    test.run_if_due()
    assert probe.sent == 1


def test_no_test_where_it_is_turned_off(clock: Clock) -> None:
    probe = Probe()
    test, _ = self_test_of(probe, clock, interval=0)
    clock.now += 1e9
    test.run_if_due()
    assert probe.sent == 0


def test_a_test_has_its_own_deadline(clock: Clock) -> None:
    test, stall = self_test_of(Probe(), clock, interval=1)
    clock.now += IDLE_SECONDS + 1
    assert stall.overdue() == 1
    test.run_if_due()
    clock.now += 7
    assert stall.overdue() == 0
    clock.now += 1
    assert stall.overdue() == 1


def test_a_failed_test_names_the_error_and_keeps_internals(clock: Clock) -> None:
    probe = Probe()
    probe.error = RuntimeError("secret internals")
    test, stall = self_test_of(probe, clock, interval=1)
    clock.now += 1
    with pytest.raises(SelfTestError, match="the self-test failed: RuntimeError"):
        test.run_if_due()
    assert stall.error == "the self-test failed: RuntimeError"
