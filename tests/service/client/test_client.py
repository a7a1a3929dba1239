"""The client against the real service, over a real socket: masks, models, jobs, connections, batches."""

import io
import socket
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from PIL import Image

from service.client import (
    AsyncClient,
    BadImage,
    Client,
    InvalidRequest,
    JobCanceled,
    JobFailed,
    NotFound,
    SemplesError,
    Unauthorized,
    Unavailable,
    UnknownLabel,
)
from service.local.supervisor import Child
from service.middleware.auth import _make_key
from tests.helpers.batches import many, packed
from tests.helpers.client_fixtures import make_photos
from tests.helpers.command import python
from tests.helpers.posting import new_photo, post, posted, wait_for_status
from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, http_api, png, wait_for

pytestmark = pytest.mark.usefixtures("worker")  # each test finds a live worker


def test_labels_that_the_model_was_not_trained_on(client: Client, photo: bytes) -> None:
    with pytest.raises(UnknownLabel):
        client.pseudo_mask(photo, ["cat", "zebra"])
    result = client.pseudo_mask(photo, ["cat", "zebra"], vocabulary="open")
    found = [(each.name, each.zero_shot) for each in result.classes]
    assert found == [("cat", False), ("zebra", True)]


def test_a_mask_is_the_services(client: Client, api: httpx.Client, photo: bytes, tmp_path: Path) -> None:
    result = client.pseudo_mask(photo, ["Kitty", "bowl"], background_threshold=0.6, min_confidence=0.6)
    file = api.get(f"/jobs/{result.job_id}/mask.png").content
    assert result.png == file
    np.testing.assert_array_equal(result.label_map, np.asarray(Image.open(io.BytesIO(file))))
    assert (result.label_map.shape, result.label_map.dtype) == ((20, 30), np.uint8)
    assert set(np.unique(result.label_map)) == {0, 1, 2, 255}

    document = api.get(f"/jobs/{result.job_id}").json()
    assert document["options"]["background_threshold"] == 0.6
    assert document["options"]["min_confidence"] == 0.6
    cat, bowl = result.classes
    assert (cat.index, cat.name, bowl.name) == (1, "cat", "bowl")
    first = document["classes"][0]
    assert cat.area == first["area"] == pytest.approx(np.mean(result.label_map == 1))
    assert (cat.confidence, list(cat.box or ())) == (first["confidence"], first["box"])
    assert cat.alignment_class is None
    assert result.ignored == document["ignored"] > 0
    assert not result.is_empty
    assert result.provenance["Model"] == "double 0123456789ab"
    assert result.provenance["Labels"] == "cat, bowl"

    result.save(tmp_path / "masks" / "cat.png")
    assert (tmp_path / "masks" / "cat.png").read_bytes() == file


def test_what_is_fetched_later(client: Client, api: httpx.Client, photo: bytes) -> None:
    result = client.pseudo_mask(photo, "cat")
    with np.load(io.BytesIO(api.get(f"/jobs/{result.job_id}/scores.npz").content)) as stored:
        np.testing.assert_array_equal(result.scores.scores, stored["scores"])
        np.testing.assert_array_equal(result.cams, stored["cams"])
    assert result.scores.scores.dtype == result.cams.dtype == np.float16
    assert (result.scores.names, result.scores.size) == (("cat",), (20, 30))
    overlay = api.get(f"/jobs/{result.job_id}/overlay.png").content
    np.testing.assert_array_equal(np.asarray(result.overlay), np.asarray(Image.open(io.BytesIO(overlay))))
    client.cancel(result.job_id)  # which forgets what is done
    assert result.scores.size == (20, 30)  # fetched once, kept
    with pytest.raises(NotFound):
        client.job(result.job_id)


def test_any_image(client: Client, photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(photo)
    pixels = np.asarray(Image.open(io.BytesIO(photo)))
    first = client.pseudo_mask(photo, "cat")
    for same in (tmp_path / "photo.png", str(tmp_path / "photo.png")):
        assert client.pseudo_mask(same, "cat").job_id == first.job_id  # the same bytes
    with_alpha = np.dstack([pixels, pixels[..., :1]])
    opened = Image.open(io.BytesIO(photo))
    for image in (opened, pixels, pixels[::-1, ::-1], pixels[..., 0], with_alpha):
        np.testing.assert_array_equal(client.pseudo_mask(image, "cat").label_map, first.label_map)
    assert client.pseudo_mask(Image.new("CMYK", (30, 20)), "cat").label_map.shape == (20, 30)


def test_a_pillow_image_is_masked_as_it_lies_in_memory(client: Client) -> None:
    """A file's orientation turns the file's mask, but not that of the pixels that Pillow has read of it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.open(io.BytesIO(new_photo())).save(file, "JPEG", exif=exif)
    assert client.pseudo_mask(file.getvalue(), "cat").label_map.shape == (30, 20)
    with Image.open(file) as image:
        assert client.pseudo_mask(image, "cat").label_map.shape == (20, 30)


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (np.zeros((4, 4, 3)), ValueError, r"expected uint8 pixels .*, got float64 \(4, 4, 3\)"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"got uint8 \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"got uint8 \(0, 4, 3\)"),
        (3, TypeError, "expected a path, bytes, a Pillow image or an array, got int"),
        ("nowhere.jpg", FileNotFoundError, "nowhere.jpg"),
    ],
)
def test_no_image(client: Client, image: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        client.pseudo_mask(image, "cat")  # type: ignore[arg-type]


def test_segment(client: Client) -> None:
    found = client.segment(png(color=(12, 0, 3)), min_confidence=0.2, refine="none")
    assert [each.name for each in found.classes] == ["dining table"]
    assert found.job.task == "segment"
    assert found.job.document["options"]["min_confidence"] == 0.2
    assert found.cams is None
    assert found.scores.names == ("dining table",)
    nothing = client.segment(png(color=(12, 1, 0)))
    assert nothing.is_empty
    assert not nothing.label_map.any()


def test_other_thresholds(client: Client, api: httpx.Client, photo: bytes) -> None:
    result = client.pseudo_mask(photo, "cat")
    path = f"/jobs/{result.job_id}/mask.png"
    for job in (result, result.job_id):
        stricter = client.rethreshold(job, background_threshold=0.9)
        assert stricter.png == api.get(path, params={"background_threshold": 0.9}).content
        assert (stricter.label_map == 1).sum() < (result.label_map == 1).sum()
    unsure = client.rethreshold(result, background_power=2, min_confidence=0.9)
    assert (unsure.label_map == 255).any()
    assert '"background_power": 2' in unsure.provenance["Options"]
    with pytest.raises(InvalidRequest, match="background_threshold"):
        client.rethreshold(result, background_threshold=7)
    with pytest.raises(TypeError, match="unexpected keyword argument 'refine'"):
        client.rethreshold(result, refine="none")  # type: ignore[call-arg]


def test_models(client: Client) -> None:
    [model] = client.models()
    assert (model.name, model.version) == ("double", "0123456789ab")
    assert model.ready
    assert model.default
    assert model.can_segment
    assert model.classes.channel("kitty") == 0
    assert model.defaults.class_thresholds == {"bowl": 0.6}
    alone = client.model("double")
    assert alone.classes == model.classes
    assert alone.document["nearest_nouns"]["cat"][0]["noun"] == "sofa"
    with pytest.raises(NotFound, match="other"):
        client.model("other")


def test_problems(client: Client, photo: bytes) -> None:
    with pytest.raises(UnknownLabel, match="expected a known label, got 'bowll'") as unknown:
        client.pseudo_mask(photo, ["cat", "bowll"])
    assert (unknown.value.label, unknown.value.nearest[0]) == ("bowll", "bowl")
    assert (unknown.value.kind, unknown.value.status) == ("unknown-label", 422)
    with pytest.raises(BadImage, match="JPEG, PNG or WebP"):
        client.pseudo_mask(b"GIF89a", "cat")
    with pytest.raises(BadImage, match="cannot read the image"):
        client.pseudo_mask(photo[:60], "cat")
    with pytest.raises(JobFailed) as failed:
        client.pseudo_mask(photo, "raises")
    assert failed.value.code == "model_error"
    assert isinstance(failed.value.repeatable, bool)
    with pytest.raises(InvalidRequest, match="expected one of double, got 'other'"):
        client.pseudo_mask(photo, "cat", model="other")
    with pytest.raises(InvalidRequest, match="refine"):
        client.pseudo_mask(photo, "cat", refine="nonsense")
    with pytest.raises(TypeError, match="unexpected keyword argument 'backgroud_threshold'"):
        client.pseudo_mask(photo, "cat", backgroud_threshold=0.3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="expected at least one label, got none"):
        client.pseudo_mask(photo, [])
    for wrong in ("", ".", ".."):
        with pytest.raises(ValueError, match="expected an id or a name"):
            client.job(wrong)
    with pytest.raises(NotFound):
        client.job("../models")


def test_keys(place: Place, photo: bytes) -> None:
    key, known = _make_key("alice")
    with http_api(place, keys=known.line) as api:
        url = str(api.base_url)
        with Client(url, key=key) as client:
            assert client.pseudo_mask(photo, "cat").job.status == "finished"
            assert key not in f"{client!r} {vars(client)}"
        for wrong in (None, "other"):
            with Client(url, key=wrong) as client, pytest.raises(Unauthorized):
                client.models()
    for impossible in ("", "two words", "näh", f"{key}\n"):
        with pytest.raises(ValueError, match="expected a key of printable ASCII") as error:
            Client("http://127.0.0.1", key=impossible)
        assert not impossible or impossible not in str(error.value)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://", "/jobs"])
def test_no_url(url: str) -> None:
    with pytest.raises(ValueError, match="expected the service's URL"):
        Client(url)


def test_no_password_in_a_url() -> None:
    with pytest.raises(ValueError, match=r"expected a URL without user, password, \? and #") as error:
        Client("http://me:secret@host")
    assert "secret" not in str(error.value)


def test_a_url_with_a_path(api: httpx.Client, photo: bytes) -> None:
    with Client(f"{api.base_url}/nothing/there") as client, pytest.raises(NotFound):
        client.pseudo_mask(photo, "cat")


def test_nobody_there(photo: bytes) -> None:
    pauses: list[float] = []
    with (
        Client("http://127.0.0.1:1", retries=2, sleep=pauses.append) as client,
        pytest.raises(Unavailable, match=r"cannot reach the service: .*refused") as error,
    ):
        client.pseudo_mask(photo, "cat")
    assert isinstance(error.value.__cause__, httpx.ConnectError)
    assert isinstance(error.value, SemplesError)
    assert len(pauses) == 2


def test_a_client_that_is_not_closed_does_not_block_the_exit() -> None:
    code = (
        "from service.client import Client, Unavailable\n"
        "client = Client('http://127.0.0.1:1', retries=0)\n"
        "try: client.models()\n"
        "except Unavailable: print('unavailable')"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "unavailable\n", "")


def test_the_client_needs_little() -> None:
    """In a fresh interpreter; httpx and what comes with it, numpy and Pillow."""
    code = (
        "import sys; before = set(sys.modules); import service.client; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = python("-c", code)
    loaded = {name for name in done.stdout.split() if not name.startswith("_")}
    allowed = "httpx httpx_sse httpcore h11 anyio certifi idna numpy PIL models service"
    allowed += " defusedxml"  # of the label files that semples reads
    optional = "click rich pygments zstandard brotli socksio h2 typing_extensions cython_runtime"
    assert loaded - sys.stdlib_module_names <= {*allowed.split(), *optional.split()}
    assert {"httpx", "httpx_sse", "numpy", "PIL"} <= loaded


def test_progress(client: Client, photo: bytes) -> None:
    heard: list[tuple[str, float]] = []
    result = client.pseudo_mask(photo, "slow", on_progress=lambda *news: heard.append(news))
    assert heard[:2] == [("queued", 0.0), ("running", 0.0)]
    assert heard[-1] == ("finished", 1.0)
    assert [stage for stage, _ in heard[2:-1]] == ["cam"] * len(heard[2:-1])
    fractions = [fraction for _, fraction in heard]
    assert fractions == sorted(fractions)
    assert len(fractions) > 5
    assert result.classes[0].name == "slow"
    # Of a job that is done already only the end is sent.
    again = client.result(result.job_id)
    assert (again.png, again.job.status) == (result.png, "finished")


def test_what_takes_longer_than_one_wait_is_followed(
    client: Client, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.client.client.WAIT_SECONDS", 0)
    result = client.pseudo_mask(photo, "slow")
    assert result.job.status == "finished"


def test_connections_that_break(api: httpx.Client, photo: bytes) -> None:
    """Cut at each of some events, it goes on where it was: no event is told twice, the job runs once."""
    heard: list[tuple[str, float]] = []
    with closing(Cutter(api.base_url)) as proxy, Client(proxy.url) as client:

        def on_progress(stage: str, fraction: float) -> None:
            heard.append((stage, fraction))
            if len(heard) in (3, 5):
                proxy.cut()

        result = client.pseudo_mask(photo, "slow", on_progress=on_progress)
        assert proxy.connections >= 3
    assert result.png == api.get(f"/jobs/{result.job_id}/mask.png").content
    assert heard[-1] == ("finished", 1.0)
    assert len(set(heard)) == len(heard)
    assert [stage for stage, _ in heard].count("running") == 1


def test_more_listeners_than_places(place: Place, photo: bytes) -> None:
    """Nobody may listen: the job is asked for instead."""
    heard: list[str] = []
    with http_api(place, max_listening=0) as api, Client(str(api.base_url), sleep=lambda _: None) as client:
        result = client.pseudo_mask(photo, "cat", on_progress=lambda stage, _: heard.append(stage))
    assert result.job.status == "finished"
    assert heard == []


def test_what_a_listener_raises_ends_it(client: Client, photo: bytes) -> None:
    def stop(stage: str, fraction: float) -> None:
        if stage == "cam":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.pseudo_mask(photo, "slow", on_progress=stop)
    again = client.pseudo_mask(photo, "slow")  # it ran on, and is not run again
    assert again.job.status == "finished"


def test_a_callback_cannot_call_its_own_client(client: Client, photo: bytes) -> None:
    with pytest.raises(RuntimeError, match="expected a call from outside the client's callbacks"):
        client.pseudo_mask(photo, "slow", on_progress=lambda *_: client.models())


def test_jobs_without_a_worker(client: Client, place: Place, worker: WorkerProcess, photo: bytes) -> None:
    """A queued job can be canceled; a full queue is waited for until there is room."""
    worker.stop()
    pauses: list[float] = []
    with http_api(place, max_queue=1) as api:
        job = client.job(post(api, photo).json()["id"])
        assert (job.status, job.labels, job.classes, job.ended) == ("queued", ("cat",), (), False)
        canceled = client.cancel(job.id)
        assert canceled is not None
        assert canceled.status == "canceled"
        with pytest.raises(JobCanceled):
            client.result(job.id)
        assert client.cancel(job.id) is None
        assert client.cancel(job.id) is None  # again is no error
        with pytest.raises(NotFound, match="no such job"):
            client.job(job.id)

        first = posted(api)

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)
            worker.ensure()  # in this thread: the worker ends with the thread that started it
            wait_for_status(api, first, "finished")

        async def run() -> None:
            async with AsyncClient(str(api.base_url), sleep=sleep) as waiting:
                result = await waiting.pseudo_mask(new_photo(), "cat")
                assert result.job.status == "finished"

        anyio.run(run)
    assert len(pauses) == 1
    assert pauses[0] >= 1  # as Retry-After said, whatever that was


def test_several_results_at_once(api: httpx.Client, tmp_path: Path) -> None:
    """The async client over a real socket, and what it fetches later."""
    make_photos(tmp_path, {f"{number}.png": "cat" for number in range(8)}, shade=109)
    photos = sorted((tmp_path / "images").iterdir())
    found: dict[Path, Any] = {}

    async def run() -> None:
        async with AsyncClient(str(api.base_url)) as client:

            async def one(photo: Path) -> None:
                found[photo] = await client.pseudo_mask(photo, "cat")

            async with anyio.create_task_group() as group:
                for photo in photos:
                    group.start_soon(one, photo)
            result = found[photos[0]]
            assert (await result.scores()).size == (20, 30)
            cams = await result.cams()
            assert cams is not None
            assert cams.dtype == np.float16
            assert (await result.overlay()).size == (30, 20)
            other = await client.rethreshold(result, background_threshold=0.9)
            assert other.png != result.png
            assert (await client.result(result.job_id)).png == result.png
            assert (await client.job(result.job_id)).status == "finished"
            assert [each.name for each in await client.models()] == ["double"]
            assert (await client.model("double")).name == "double"
            assert (await client.segment(photos[0])).job.task == "segment"
            assert await client.cancel(result.job_id) is None

    anyio.run(run)
    assert len({each.job_id for each in found.values()}) == 8
    for each in found.values():
        assert set(np.unique(each.label_map)) == {0, 1}


class Cutter:
    """A TCP proxy whose connections can be cut, as a network does."""

    def __init__(self, target: httpx.URL) -> None:
        self._target = (str(target.host), int(target.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Break all connections that there are now."""
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                server = socket.create_connection(self._target)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        self._open.add(source)
        with source, suppress(OSError):
            while chunk := source.recv(65536):
                sink.sendall(chunk)
        self._open.discard(source)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def batch_client(place: Place, worker: WorkerProcess, running_janitor: Child) -> Iterator[Client]:
    with http_api(place) as api, Client(str(api.base_url)) as there:
        yield there
    wait_for(lambda: place.leftovers() == NOTHING, what="an empty queue")


def test_a_zip_goes_in_and_an_archive_comes_out(batch_client: Client, tmp_path: Path) -> None:
    photos = tmp_path / "photos.zip"
    photos.write_bytes(packed(many(3) | {"bad.png": b"no picture"}))
    batch = batch_client.submit_batch(photos, refine="none")
    batch = batch_client.wait_for_batch(batch.id)
    assert (batch.status, batch.counts["finished"], batch.counts["failed"]) == ("finished", 3, 1)
    (failed,) = batch_client.batch_items(batch.id, status="failed")
    assert failed["image"] == "bad.png"
    assert batch_client.batch_report(batch.id)["photos"] == 3
    archive = batch_client.save_archive(batch.id, tmp_path / "out.zip", format="voc")
    with zipfile.ZipFile(archive) as masks:
        names = [name for name in masks.namelist() if name.startswith("SegmentationClass/")]
    assert sorted(names) == [f"SegmentationClass/{number}.png" for number in range(3)]
    assert batch_client.submit_batch(photos, refine="none").id == batch.id


def test_a_batch_is_canceled_then_forgotten(batch_client: Client, tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(packed(many(3, "slow")))
    batch = batch_client.submit_batch(tmp_path / "photos.zip")
    batch_client.cancel_batch(batch.id)
    assert batch_client.batch_status(batch.id).status == "canceled"
    batch_client.cancel_batch(batch.id)
    with pytest.raises(NotFound):
        batch_client.batch_status(batch.id)
