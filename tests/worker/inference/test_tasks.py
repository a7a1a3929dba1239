"""From a request to stored files: the task itself, without a queue."""

from __future__ import annotations

import io
import uuid
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.data.images import ImageError
from models.inference.masks import CannotSegmentError, MaskOptions
from tests.helpers import service_doubles as doubles
from tests.helpers.service_fixtures import png
from worker.inference.pipeline import PredictorLike, Runtime, pseudo_mask, run
from worker.queue.registry import ModelInfo
from worker.queue.schema import JobRequest, JobResult, ModelRef
from worker.storage import BlobMissingError, BlobStore


def runtime_of(predictor: PredictorLike) -> Runtime:
    blobs = BlobStore.open(f"memory://{uuid.uuid4().hex}")
    model = ModelInfo.model_validate(predictor.info.to_json())
    return Runtime(predictor=predictor, model=model, blobs=blobs, worker="w")


@pytest.fixture
def runtime() -> Runtime:
    return runtime_of(doubles.DoublePredictor())


def request(runtime: Runtime, image: bytes, *labels: str) -> JobRequest:
    return JobRequest(
        task="pseudo_mask" if labels else "segment",
        image=runtime.blobs.put("uploads", image),
        labels=labels,
        options=MaskOptions(refine="none", min_confidence=0.1, background_threshold=0.3),
        model=ModelRef(name="double", version="asked"),
    )


def work(runtime: Runtime, job: JobRequest) -> JobResult:
    return run(job, runtime, waited=1.5, report=lambda _stage, _fraction: None)


def test_files_and_record(runtime: Runtime) -> None:
    result = work(runtime, request(runtime, png(width=30, height=20), "cat", "dining table"))

    assert (result.image.width, result.image.height) == (30, 20)
    assert [(c.index, c.name, c.area) for c in result.classes] == [
        (1, "cat", pytest.approx(1 / 3)),
        (3, "dining table", pytest.approx(1 / 3)),
    ]
    assert result.classes[0].box == (0, 0, 10, 20)
    assert result.model.version == "0123456789ab"  # of the one that did it, not of the one asked
    assert result.timings.queue == 1.5
    assert result.worker == "w"
    assert JobResult.model_validate_json(result.model_dump_json()) == result

    mask = Image.open(io.BytesIO(runtime.blobs.get(result.blobs.mask)))
    assert mask.mode == "P"
    assert sorted(set(np.asarray(mask).ravel().tolist())) == [0, 1, 3]


def test_the_mask_says_how_it_was_made(runtime: Runtime) -> None:
    result = work(runtime, request(runtime, png(), "cat"))
    mask = Image.open(io.BytesIO(runtime.blobs.get(result.blobs.mask)))
    mask.load()
    assert mask.info["Model"] == "double 0123456789ab"
    assert mask.info["Labels"] == "cat"
    assert '"background_threshold": 0.3' in mask.info["Options"]
    assert mask.info["Software"].startswith("semples ")


def test_scores_load_without_pickle(runtime: Runtime) -> None:
    result = work(runtime, request(runtime, png(width=30, height=20), "cat", "bowl"))
    content = io.BytesIO(runtime.blobs.get(result.blobs.scores))
    with np.load(content, allow_pickle=False) as scores:
        assert scores["cams"].dtype == np.float16
        assert scores["scores"].shape == (2, 20, 30)
        assert scores["cams"].shape == (2, 10, 15)
        assert scores["class_index"].tolist() == [1, 2]
        assert scores["class_name"].tolist() == ["cat", "bowl"]
        assert scores["image_size"].tolist() == [20, 30]


def test_to_segment_needs_no_labels(runtime: Runtime) -> None:
    job = request(runtime, png(width=30, height=20, color=(0, 0, 2)))
    result = work(runtime, job)
    assert result.labels == ()
    assert [(c.index, c.name, c.area) for c in result.classes] == [(2, "bowl", 0.5)]
    assert result.options == job.options
    mask = np.asarray(Image.open(io.BytesIO(runtime.blobs.get(result.blobs.mask))))
    assert mask.shape == (20, 30)
    assert np.unique(mask).tolist() == [0, 2]
    with np.load(io.BytesIO(runtime.blobs.get(result.blobs.scores)), allow_pickle=False) as scores:
        assert "cams" not in scores
        assert scores["scores"].shape == (1, 20, 30)
        assert scores["class_name"].tolist() == ["bowl"]


def test_masks_of_a_segmenter_name_what_they_show(runtime: Runtime) -> None:
    result = work(runtime, request(runtime, png(color=(0, 0, 2))))
    text = Image.open(io.BytesIO(runtime.blobs.get(result.blobs.mask))).info
    assert text["Labels"] == "bowl"


def test_nothing_found_is_a_result_as_well(runtime: Runtime) -> None:
    result = work(runtime, request(runtime, png(color=(0, 0, 0))))
    assert result.classes == ()
    with np.load(io.BytesIO(runtime.blobs.get(result.blobs.scores)), allow_pickle=False) as scores:
        assert scores["scores"].shape == (0, 20, 30)
        assert scores["class_name"].shape == (0,)


def test_a_model_without_a_segmenter_says_so() -> None:
    runtime = runtime_of(doubles.PlainPredictor())
    with pytest.raises(CannotSegmentError, match="expected a model with a segmenter, got 'plain'"):
        work(runtime, request(runtime, png()))


def test_the_options_reach_the_model() -> None:
    seen: list[MaskOptions] = []

    class Listening(doubles.DoublePredictor):
        def _activate(self, batch: Any, *rest: Any) -> Any:
            seen.extend(each.options for each in batch)
            return super()._activate(batch, *rest)

    runtime = runtime_of(Listening())
    job = request(runtime, png(), "cat")
    chosen = MaskOptions(refine="pamr", min_confidence=0.2, background_power=2.0)
    work(runtime, job.model_copy(update={"options": chosen}))
    by_class = MaskOptions(
        refine="none", min_confidence=0, background_threshold=0.4, class_thresholds={"cat": 0.5}
    )
    work(runtime, job.model_copy(update={"options": by_class}))
    plain = MaskOptions(refine="none", min_confidence=0.3)
    work(runtime, request(runtime, png()).model_copy(update={"options": plain}))
    assert seen == [
        MaskOptions("pamr", 0.2, background_power=2.0),
        MaskOptions("none", 0, background_threshold=0.4, class_thresholds={"cat": 0.5}),
        MaskOptions("none", 0.3),
    ]


def test_equal_requests_make_equal_files(runtime: Runtime) -> None:
    job = request(runtime, png(), "cat")
    assert work(runtime, job).blobs == work(runtime, job).blobs
    assert len(runtime.blobs.keys("results")) == 2


def test_exif_orientation_is_undone_before_the_model(runtime: Runtime) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "JPEG", exif=exif)
    result = work(runtime, request(runtime, buffer.getvalue(), "cat"))
    assert (result.image.width, result.image.height) == (20, 30)
    assert result.image.exif_orientation == 6


def test_a_lost_upload_and_a_damaged_one(runtime: Runtime) -> None:
    job = request(runtime, png(), "cat")
    lost = job.model_copy(update={"image": "uploads/00/" + "0" * 64})
    with pytest.raises(BlobMissingError):
        work(runtime, lost)
    with pytest.raises(ImageError):
        work(runtime, request(runtime, b"not an image", "cat"))


def test_progress_goes_from_0_to_1_through_named_stages(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubles, "SLOW_SECONDS", 0.02)
    seen: list[tuple[str, float]] = []
    job = request(runtime, png(), "slow")
    run(job, runtime, waited=0, report=lambda stage, fraction: seen.append((stage, fraction)))
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= fractions[-1] < 1
    assert list(dict.fromkeys(stage for stage, _ in seen)) == ["decode", "cam", "encode"]


def test_a_task_outside_our_worker_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"expected a worker started by worker\.main"):
        pseudo_mask(
            {
                "image": "uploads/00/" + "0" * 64,
                "labels": ["cat"],
                "options": {"refine": "none", "background_threshold": 0.4, "min_confidence": 0},
                "model": {"name": "double", "version": "1"},
            }
        )
