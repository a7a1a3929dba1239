"""From a request to stored files: the steps of a job, without a queue."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.data.images import ImageError
from models.inference.masks import CannotSegmentError, MaskOptions
from tests.helpers import service_doubles as doubles
from tests.helpers.service_fixtures import png
from tests.helpers.undisturbed import context_of, run_steps
from worker.inference.pipeline import WorkerContext, forward, preprocess
from worker.queue.schema import JobRequest, JobResult, ModelRef
from worker.storage import BlobMissingError


@pytest.fixture
def context() -> WorkerContext:
    return context_of(doubles.DoublePredictor())


def request(context: WorkerContext, image: bytes, *labels: str) -> JobRequest:
    return JobRequest(
        task="pseudo_mask" if labels else "segment",
        image=context.blobs.put("uploads", image),
        labels=labels,
        options=MaskOptions(refine="none", min_confidence=0.1, background_threshold=0.3),
        model=ModelRef(name="double", version="asked"),
    )


def work(context: WorkerContext, job: JobRequest) -> JobResult:
    return run_steps(job, context, waited=1.5)


def test_files_and_record(context: WorkerContext) -> None:
    result = work(context, request(context, png(width=30, height=20), "cat", "dining table"))

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

    mask = Image.open(io.BytesIO(context.blobs.get(result.blobs.mask)))
    assert mask.mode == "P"
    assert sorted(set(np.asarray(mask).ravel().tolist())) == [0, 1, 3]


def test_the_mask_says_how_it_was_made(context: WorkerContext) -> None:
    result = work(context, request(context, png(), "cat"))
    mask = Image.open(io.BytesIO(context.blobs.get(result.blobs.mask)))
    mask.load()
    assert mask.info["Model"] == "double 0123456789ab"
    assert mask.info["Labels"] == "cat"
    assert '"background_threshold": 0.3' in mask.info["Options"]
    assert mask.info["Software"].startswith("semples ")


def test_scores_load_without_pickle(context: WorkerContext) -> None:
    result = work(context, request(context, png(width=30, height=20), "cat", "bowl"))
    content = io.BytesIO(context.blobs.get(result.blobs.scores))
    with np.load(content, allow_pickle=False) as scores:
        assert scores["cams"].dtype == np.float16
        assert scores["scores"].shape == (2, 20, 30)
        assert scores["cams"].shape == (2, 10, 15)
        assert scores["class_index"].tolist() == [1, 2]
        assert scores["class_name"].tolist() == ["cat", "bowl"]
        assert scores["image_size"].tolist() == [20, 30]


def test_to_segment_needs_no_labels(context: WorkerContext) -> None:
    job = request(context, png(width=30, height=20, color=(0, 0, 2)))
    result = work(context, job)
    assert result.labels == ()
    assert [(c.index, c.name, c.area) for c in result.classes] == [(2, "bowl", 0.5)]
    assert result.options == job.options
    mask = np.asarray(Image.open(io.BytesIO(context.blobs.get(result.blobs.mask))))
    assert mask.shape == (20, 30)
    assert np.unique(mask).tolist() == [0, 2]
    with np.load(io.BytesIO(context.blobs.get(result.blobs.scores)), allow_pickle=False) as scores:
        assert "cams" not in scores
        assert scores["scores"].shape == (1, 20, 30)
        assert scores["class_name"].tolist() == ["bowl"]


def test_masks_of_a_segmenter_name_what_they_show(context: WorkerContext) -> None:
    result = work(context, request(context, png(color=(0, 0, 2))))
    text = Image.open(io.BytesIO(context.blobs.get(result.blobs.mask))).info
    assert text["Labels"] == "bowl"


def test_nothing_found_is_a_result_as_well(context: WorkerContext) -> None:
    result = work(context, request(context, png(color=(0, 0, 0))))
    assert result.classes == ()
    with np.load(io.BytesIO(context.blobs.get(result.blobs.scores)), allow_pickle=False) as scores:
        assert scores["scores"].shape == (0, 20, 30)
        assert scores["class_name"].shape == (0,)


def test_a_model_without_a_segmenter_says_so() -> None:
    context = context_of(doubles.PlainPredictor())
    with pytest.raises(CannotSegmentError, match="expected a model with a segmenter, got 'plain'"):
        work(context, request(context, png()))


def test_the_options_reach_the_model() -> None:
    seen: list[MaskOptions] = []

    class Listening(doubles.DoublePredictor):
        def _activate(self, batch: Any, *rest: Any) -> Any:
            seen.extend(each.options for each in batch)
            return super()._activate(batch, *rest)

    context = context_of(Listening())
    job = request(context, png(), "cat")
    chosen = MaskOptions(refine="pamr", min_confidence=0.2, background_power=2.0)
    work(context, job.model_copy(update={"options": chosen}))
    by_class = MaskOptions(refine="none", min_confidence=0, background_threshold=0.4, class_thresholds={"cat": 0.5})
    work(context, job.model_copy(update={"options": by_class}))
    plain = MaskOptions(refine="none", min_confidence=0.3)
    work(context, request(context, png()).model_copy(update={"options": plain}))
    assert seen == [
        MaskOptions("pamr", 0.2, background_power=2.0),
        MaskOptions("none", 0, background_threshold=0.4, class_thresholds={"cat": 0.5}),
        MaskOptions("none", 0.3),
    ]


def test_equal_requests_make_equal_files(context: WorkerContext) -> None:
    job = request(context, png(), "cat")
    assert work(context, job).blobs == work(context, job).blobs
    assert len(context.blobs.keys("results")) == 2


def test_exif_orientation_is_undone_before_the_model(context: WorkerContext) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "JPEG", exif=exif)
    result = work(context, request(context, buffer.getvalue(), "cat"))
    assert (result.image.width, result.image.height) == (20, 30)
    assert result.image.exif_orientation == 6
    assert result.image.value_range is None


def test_sixteen_bit_gray_that_was_scaled_says_so(context: WorkerContext) -> None:
    buffer = io.BytesIO()
    values = np.linspace(100, 4000, 600).astype(np.uint16)  # of 12 bits
    Image.fromarray(values.reshape(20, 30)).save(buffer, "PNG")
    result = work(context, request(context, buffer.getvalue(), "cat"))
    assert result.image.value_range == (100, 4000)


def test_a_lost_upload_and_a_damaged_one(context: WorkerContext) -> None:
    job = request(context, png(), "cat")
    lost = job.model_copy(update={"image": "uploads/00/" + "0" * 64})
    with pytest.raises(BlobMissingError):
        work(context, lost)
    with pytest.raises(ImageError):
        work(context, request(context, b"not an image", "cat"))


def test_progress_is_of_the_whole_job_and_never_falls(context: WorkerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubles, "SLOW_SECONDS", 0.02)
    seen: list[tuple[str, float]] = []
    job = request(context, png(), "slow")
    image = preprocess(job, context)
    forward([image], context, lambda stage, fraction: seen.append((stage, fraction)))
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= fractions[-1] < 1
    assert {stage for stage, _ in seen} == {"cam"}
