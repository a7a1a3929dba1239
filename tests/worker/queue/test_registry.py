"""Workers and models that are announced, and how long they are known."""

from tests.helpers.service_fixtures import Place
from worker.queue.registry import WorkerInfo, known_models, live_workers


def test_a_worker_whose_lease_expired_is_dropped(place: Place) -> None:
    place.redis.flushdb()
    place.redis.sadd("semples:workers", "ghost")
    assert live_workers(place.redis) == ()
    assert place.redis.smembers("semples:workers") == set()
    assert known_models(place.redis) == ()
    info = WorkerInfo.model_validate(
        {"name": "w", "model": {"name": "m", "version": "1"}, "device": "", "host": "", "pid": 1}
    )
    assert info.jobs_in_hand == 0
