"""Jobs through threads and networks: who shares a batch, who is left out, who is put back."""

from __future__ import annotations

from tests.helpers.conveyor_works import Line, Works, outcomes


def test_jobs_of_one_size_share_a_batch(works: Works) -> None:
    wide = [works.hand("cat", width=30) for _ in range(3)]
    narrow = [works.hand("cat", width=20) for _ in range(2)]
    line = works.work([wide[0], narrow[0], wide[1], narrow[1], wide[2]])
    assert works.predictor.batches == [[(20, 30)] * 3, [(20, 20)] * 2]
    assert outcomes(line) == ["cat JobResult"] * 5
    assert works.watch.overdue() == 0


def test_batches_are_no_larger_than_they_may_be() -> None:
    works = Works(batch=4, pixels=3 * 20 * 30)
    line = works.work([works.hand("cat") for _ in range(7)])
    assert [len(batch) for batch in works.predictor.batches] == [3, 3, 1]
    assert len(line.settled) == 7
    works.conveyor.close()


def test_a_job_that_is_to_be_alone_is(works: Works) -> None:
    line = works.work([works.hand("cat"), works.hand("bowl")], alone=True)
    assert outcomes(line) == ["cat JobResult"]
    assert line.asked == 0


def test_canceled_jobs_are_left_and_their_mates_are_not(works: Works) -> None:
    hands = [works.hand("cat") for _ in range(3)]
    line = Line(hands[1:], unwanted={hands[0].job.id})
    works.conveyor.work(hands[:1], line, alone=False)
    assert outcomes(line) == ["cat JobResult"] * 3  # the desk drops what nobody wants
    alone = works.hand("cat")
    line = Line([], unwanted={alone.job.id})
    works.conveyor.work([alone], line, alone=False)
    assert outcomes(line) == ["cat JobCanceledError"]


def test_waiting_for_a_thread_is_not_being_late(works: Works) -> None:
    works.predictor.pause = 0.2
    hands = [works.hand("cat", timeout=1) for _ in range(14)]  # 1.4 s for two threads
    assert outcomes(works.work(hands)) == ["cat JobResult"] * 14


def test_what_has_not_been_through_the_networks_is_put_back_when_the_worker_is_to_stop(
    works: Works,
) -> None:
    hands = [works.hand("cat", width=20), works.hand("cat", width=30)]
    line = Line([])

    def stop(stage: str, fraction: float) -> None:
        line.closing = True

    line.reporter = lambda hands: stop  # type: ignore[method-assign]
    works.conveyor.work(hands, line, alone=False)
    assert list(line.settled) == [hands[0].job.id]
    assert line.released == [hands[1]]


def test_no_more_photos_are_taken_than_memory_holds() -> None:
    works = Works(batch=1, held=20 * 30)
    line = works.work([works.hand("cat") for _ in range(3)])
    assert [len(batch) for batch in works.predictor.batches] == [1, 1, 1]
    assert len(line.settled) == 3
    works.conveyor.close()
