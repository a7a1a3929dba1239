"""Redis is away for long: nobody is dead, and nobody is stuck."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from worker.watch import Watch

from models.photos import OnProgress
from tests.service_doubles import DoublePredictor
from tests.service_fixtures import Place
from worker.calm import Calm
from worker.conveyor import Conveyor
from worker.hand import Hand
from worker.presence import ModelInfo
from worker.queues import make_job
from worker.runtime import Runtime
from worker.sizes import Sizes
from worker.steps import Photo, decode
from worker.taking import new_execution


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


class WaitingDesk:
    """A desk that waits for Redis, longer than any job may take."""

    def __init__(self, watch: Watch, seconds: list[float]) -> None:
        self.watch = watch
        self.seconds = seconds
        self.overdue: list[float] = []

    def more(self, most: int) -> list[Hand]:
        del most
        return []

    def settle(self, hands: Sequence[Hand]) -> None:
        del hands
        self.seconds[0] += 1000
        self.overdue.append(self.watch.overdue())

    def reporter(self, hands: Sequence[Hand]) -> OnProgress:
        del hands
        return lambda _stage, _fraction: None


def test_to_wait_for_redis_is_not_to_be_stuck(place: Place) -> None:
    seconds = [0.0]
    watch = Watch(clock=lambda: seconds[0])
    desk = WaitingDesk(watch, seconds)
    predictor = DoublePredictor()
    model = ModelInfo.model_validate(predictor.info.to_json())
    runtime = Runtime(predictor, model, place.blobs, worker="lone")
    conveyor = Conveyor(runtime, sizes=Sizes(), watch=watch)
    request = place.request("cat")
    decoded: Future[Photo] = Future()
    decoded.set_result(decode(request, runtime))
    job = make_job(place.redis, request, timeout=1)
    conveyor.work([Hand(job, new_execution(job, worker="lone"), 0.0, decoded)], desk, alone=False)
    conveyor.close()
    assert desk.overdue == [0.0]
