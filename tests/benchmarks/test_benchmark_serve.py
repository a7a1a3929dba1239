import io
import itertools
import math
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks import serve
from benchmarks.service_load import measure
from benchmarks.service_load.bare import grouped
from benchmarks.service_load.figures import Load, jobs_table, load_table, pool, quantile
from benchmarks.service_load.load import Bounds, LabeledPhoto, Target, press, read_photos, tiny_photo
from tests.helpers.service_fixtures import WorkerProcess, png

FAST = Load((0.1, 0.2, 0.3), wall=1.0)
SLOW = Load((0.2, 0.4), wall=2.0, client_cpu=0.5, errors=("refused",))


def test_quantiles_are_in_ms_and_linear_between_neighbors() -> None:
    assert quantile([0.3, 0.1, 0.2], 0.5) == pytest.approx(200)
    assert quantile([0.0, 0.1], 0.95) == pytest.approx(95)
    assert math.isnan(quantile([], 0.5))


def test_turns_are_pooled_by_name() -> None:
    pooled = pool([{"b": FAST, "a": SLOW}, {"a": SLOW}])
    assert list(pooled) == ["b", "a"]
    assert pooled["a"] == Load((0.2, 0.4, 0.2, 0.4), 4.0, 1.0, ("refused", "refused"))
    assert pooled["b"] == FAST


def test_loads_are_compared_with_the_bare_one() -> None:
    *_, fast, slow = load_table({"fast": FAST, "slow": SLOW}, bare="fast").splitlines()
    assert fast == "| fast | 3 | 3.00 | 200.0 | 290.0 | 0 | – | 1.00 | 0.0 |"
    assert slow == "| slow | 2 | 1.00 | 300.0 | 390.0 | 1 | 25% | 0.33 | 100.0 |"


def test_a_table_without_a_bare_load_has_no_ratios() -> None:
    header, rule, row = load_table({"slow": SLOW}, bare=None).splitlines()
    assert header.count("|") == rule.count("|") == row.count("|") == 8
    assert row == "| slow | 2 | 1.00 | 300.0 | 390.0 | 1 | 25% |"


def test_what_never_went_well_has_no_figures() -> None:
    nothing = Load((), wall=1.0, errors=("refused",))
    row = load_table({"nothing": nothing}, bare="nothing").splitlines()[-1]
    assert row == "| nothing | 0 | 0.00 | nan | nan | 1 | – | nan | nan |"


def test_workers_are_compared_by_their_median_turn() -> None:
    seconds = {"ours": [1.0, 2.0, 9.0], "plain": [4.0, 4.0, 4.0]}
    *_, ours, plain = jobs_table(seconds, jobs=100, against={"ours": "plain"}).splitlines()
    assert ours == "| ours | 50 | 2.00 |"
    assert plain == "| plain | 25 | – |"


def test_copies_of_a_photo_differ_in_bytes_and_not_in_pixels() -> None:
    photo = tiny_photo("cat")
    copies = {photo.data, photo.copy(1), photo.copy(2)}
    assert len(copies) == 3
    pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in copies]
    assert (pixels[0] == pixels[1]).all()
    assert (pixels[0] == pixels[2]).all()


def test_photos_of_a_folder_are_labeled_jpegs(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png())
    (tmp_path / "labels.csv").write_text("image,labels\na.png,cat;bowl\nb.png,\n")
    (photo,) = read_photos(tmp_path)
    assert photo.labels == ("cat", "bowl")
    assert Image.open(io.BytesIO(photo.copy(7))).size == (30, 20)


def test_a_folder_without_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,labels\nb.png,\n")
    with pytest.raises(ValueError, match="expected labeled photos"):
        read_photos(tmp_path)


def test_equal_sizes_are_grouped() -> None:
    assert grouped("abaaba", most=3) == [[0, 2, 3], [1, 4], [5]]
    assert grouped("", most=3) == []


def _press(api: httpx.Client, photo: LabeledPhoto, requests: int) -> Load:
    port = api.base_url.port
    assert port is not None
    target = Target(port, "/pseudo-mask?wait=60", {"refine": "none"})
    bounds = Bounds(requests, seconds=60)
    return press(target, [photo], concurrency=2, bounds=bounds, numbers=itertools.count())


def test_every_request_is_a_job_of_its_own(api: httpx.Client, worker: WorkerProcess) -> None:
    before = worker.place.redis.zcard("rq:finished:semples-double")
    load = _press(api, tiny_photo("cat"), 3)
    assert load.errors == ()
    assert len(load.seconds) == 3
    assert worker.place.redis.zcard("rq:finished:semples-double") == before + 3


def test_an_answer_that_is_no_mask_is_an_error(api: httpx.Client, worker: WorkerProcess) -> None:
    load = _press(api, tiny_photo("no such thing"), 2)
    assert load.seconds == ()
    assert len(load.errors) == 2
    assert "got 422" in load.errors[0]


def test_no_request_is_begun_when_the_time_is_over() -> None:
    nowhere, over = Target(1, "/"), Bounds(requests=5, seconds=0)
    load = press(nowhere, [tiny_photo()], concurrency=2, bounds=over, numbers=itertools.count())
    assert (load.seconds, load.errors) == ((), ())


@pytest.mark.slow
def test_a_small_run_against_the_double(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--requests", "3", "--jobs", "4", "--turns", "1"]
    serve.main(["--parts", "durable", "jobs", *small])
    printed = capsys.readouterr().out
    (posted,) = (line for line in printed.splitlines() if line.startswith("| POST"))
    assert posted.split(" | ")[1] == "3"
    for name in (*measure.AGAINST, *measure.AGAINST.values()):
        assert f"| {name} | " in printed
