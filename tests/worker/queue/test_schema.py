"""Records and names on the wire."""

import json

import pytest
from pydantic import ValidationError

from models.bundle.manifest import _SegmentDefaults, read_info
from models.inference.masks import MaskOptions
from tests.helpers.service_doubles import Info
from tests.helpers.service_fixtures import Place
from worker.queue.registry import Explanation, ModelInfo, WorkerInfo, known_models, live_workers
from worker.queue.schema import JobRequest, ModelRef, Progress


def request(**changes: object) -> JobRequest:
    base: dict[str, object] = {
        "image": "uploads/00/" + "0" * 64,
        "labels": ("cat", "bowl"),
        "options": MaskOptions(refine="none", background_threshold=0.4, min_confidence=0.0),
        "model": ModelRef(name="m", version="1"),
    }
    return JobRequest.model_validate({**base, **changes})


def test_equal_requests_are_one_job_and_survive_json() -> None:
    copy = JobRequest.model_validate(json.loads(request().model_dump_json()))
    assert copy == request()
    assert copy.job_id() == request().job_id()
    assert len(copy.job_id()) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"image": "uploads/00/" + "1" * 64},
        {"labels": ("cat",)},
        {"options": MaskOptions(refine="pamr", background_threshold=0.4, min_confidence=0.0)},
        {"options": MaskOptions(refine="none", background_threshold=0.41, min_confidence=0.0)},
        {"options": MaskOptions(refine="none", background_threshold=0.4, min_confidence=0.1)},
        {"options": MaskOptions(refine="none", min_confidence=0.0, background_power=0.4)},
        {
            "options": MaskOptions(
                refine="none", min_confidence=0.0, background_threshold=0.4, class_thresholds={"cat": 0.5}
            )
        },
        {"options": MaskOptions(refine="none", min_confidence=0.0, background_threshold=0.4, threshold_slope=0.1)},
        {"task": "segment"},
        {"vocabulary": "open"},
        {"model": ModelRef(name="m", version="2")},
        {"model": ModelRef(name="n", version="1")},
    ],
)
def test_whatever_decides_the_result_decides_the_job(change: dict[str, object]) -> None:
    assert request(**change).job_id() != request().job_id()


def test_a_closed_vocabulary_and_no_slope_are_no_part_of_the_job() -> None:
    assert request().job_id() == "0a1dd85bb0a197a5e16e2b58d1d87ba3"  # as before there was another
    assert "vocabulary" not in json.loads(request().model_dump_json())
    opened = request(vocabulary="open")
    assert JobRequest.model_validate(json.loads(opened.model_dump_json())) == opened


def test_a_record_from_before_there_were_two_tasks_is_a_pseudo_mask() -> None:
    record = {
        "image": "uploads/00/" + "0" * 64,
        "labels": ["cat"],
        "options": {"refine": "none", "background_threshold": 0.3, "min_confidence": 0.0},
        "model": {"name": "m", "version": "1"},
    }
    old = JobRequest.model_validate(record)
    assert old.task == "pseudo_mask"
    assert old.options == MaskOptions(refine="none", min_confidence=0.0, background_threshold=0.3)


def test_records_are_frozen_and_take_fields_of_later_versions() -> None:
    progress = Progress.model_validate({"stage": "cam", "fraction": 0.5, "new": 1})
    with pytest.raises(ValidationError, match="frozen"):
        progress.stage = "x"


def test_a_model_is_announced_with_all_that_the_service_asks_of_it() -> None:
    info = ModelInfo.model_validate(Info().to_json())
    assert info.class_list().resolve(["Kitty", "dining_table"]) == (
        Info().classes.classes[0],
        Info().classes.classes[2],
    )
    assert info.ref == ModelRef(name="double", version="0123456789ab")
    assert info.segment == _SegmentDefaults(refine="pamr", min_confidence=0.1)
    assert (info.can("segment"), info.can("pseudo_mask")) == (True, True)


def test_a_model_of_an_older_worker_can_neither_segment_nor_take_open_labels() -> None:
    shown = Info().to_json()
    new = ("can_segment", "segment", "open_vocabulary")
    info = ModelInfo.model_validate({key: shown[key] for key in shown if key not in new})
    assert not info.open_vocabulary
    assert (info.can("segment"), info.can("pseudo_mask")) == (False, True)
    assert info.segment is None


def test_a_real_bundle_can_be_announced(tiny_bundle: object) -> None:
    info = read_info(tiny_bundle)  # type: ignore[arg-type]
    announced = ModelInfo.model_validate_json(ModelInfo.model_validate(info.to_json()).model_dump_json())
    assert announced.class_list() == info.classes
    assert (announced.name, announced.version) == (info.name, info.version)
    assert announced.background_threshold == info.mask_options.background_threshold
    assert announced.licence == "Apache-2.0"
    explained = Explanation.model_validate(info.to_json()).nearest_nouns
    assert {name: [vars(noun) for noun in nouns] for name, nouns in explained.items()} == {
        name: [vars(noun) for noun in nouns] for name, nouns in info.nearest_nouns.items()
    }


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
