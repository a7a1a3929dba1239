"""What is sent: a right answer, or a clear 4xx with nothing left in queue or store."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import UploadFile

from models.data.labels import split_labels
from models.inference.masks import MaskOptions
from service.api.forms import PseudoMaskForm, build_request, parse_wait, wants_png
from tests.helpers.service_doubles import Info
from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, http_api, png, wait_for
from tests.models.data import test_images as pictures
from worker.queue.registry import ModelInfo


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        (["cat", "bowl"], ("cat", "bowl")),
        (["cat,bowl"], ("cat", "bowl")),
        (["cat; bowl"], ("cat", "bowl")),
        ([" cat , dining table ", "", "bowl,"], ("cat", "dining table", "bowl")),
        ([], ()),
        ([",,"], ()),
    ],
)
def test_split_labels(fields: list[str], labels: tuple[str, ...]) -> None:
    assert split_labels(fields) == labels


@pytest.mark.parametrize(
    ("query", "prefer", "seconds"),
    [
        (None, None, 0),
        (5.5, None, 5.5),
        (5.0, "wait=20", 5),
        (0.0, "wait=20", 0),
        (None, "wait=20", 20),
        (None, "respond-async, wait=20", 20),
        (None, 'handling=lenient; wait="7"', 7),
        (None, "Wait = 3", 3),
        (None, "wait=1000", 60),
        (None, "wait=soon", 0),
        (None, "nowait=3", 0),
        (None, "wait=" + "9" * 500, 60),
    ],
)
def test_parse_wait(query: float | None, prefer: str | None, seconds: float) -> None:
    assert parse_wait(query, prefer) == seconds


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("*/*", False),
        ("application/json", False),
        ("image/png", True),
        ("Image/PNG;q=0.9", True),
        ("image/png, */*;q=0.1", True),
        ("application/json, image/png", False),
        ("image/*", False),
    ],
)
def test_wants_png(accept: str, wanted: bool) -> None:
    assert wants_png(accept) is wanted


@pytest.mark.parametrize(
    ("fields", "background"),
    [
        # Of the model's class thresholds, those of the labels alone.
        ({}, {"background_threshold": 0.4, "class_thresholds": {"bowl": 0.6}}),
        ({"labels": ["cat"]}, {"background_threshold": 0.4}),
        # Who names a rule means it for every class.
        ({"background_threshold": 0.4}, {"background_threshold": 0.4}),
        ({"background_power": 2}, {"background_power": 2.0}),
    ],
)
def test_the_background_is_the_models_unless_named(
    fields: dict[str, Any], background: dict[str, Any]
) -> None:
    model = ModelInfo.model_validate(Info().to_json())
    image = UploadFile(io.BytesIO(png()))
    form = PseudoMaskForm.model_validate({"image": image, "labels": ["bowl,cat"], **fields})
    checked = build_request(form, png(), model, max_pixels=10**6)
    assert checked.pixels == 30 * 20
    assert checked.request.options == MaskOptions(refine="none", min_confidence=0.0, **background)


MULTIPART = "multipart/form-data; boundary=X"


@pytest.fixture(scope="module")
def small_api(place: Place) -> Iterator[httpx.Client]:
    """An API that takes two megabytes."""
    with http_api(place, max_body_bytes=2_000_000) as client:
        yield client


def send(api: httpx.Client, image: bytes = png(), **data: Any) -> httpx.Response:
    return api.post(
        "/pseudo-mask", files={"image": ("photo.png", image)}, data={"labels": "cat", **data}
    )


def segment(api: httpx.Client, image: bytes = png(), **data: Any) -> httpx.Response:
    return api.post("/segment", files={"image": ("photo.png", image)}, data=data)


def raw(api: httpx.Client, content: Any, content_type: str = MULTIPART) -> httpx.Response:
    return api.post("/pseudo-mask", content=content, headers={"Content-Type": content_type})


def chunks() -> Iterator[bytes]:
    """A body that does not say how long it is."""
    yield b'--X\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    for _ in range(400):
        yield b"\0" * 10_000
    yield b"\r\n--X--\r\n"


Send = Callable[[httpx.Client], httpx.Response]
TABLE: list[tuple[str, Send, int, str]] = [
    ("unknown label", lambda api: send(api, labels="cta"), 422, "unknown-label"),
    ("one unknown of two", lambda api: send(api, labels=["cat", "dogg"]), 422, "unknown-label"),
    ("no labels", lambda api: send(api, labels=""), 422, "invalid-request"),
    ("commas only", lambda api: send(api, labels=" , ,"), 422, "invalid-request"),
    ("labels missing", lambda api: send(api, labels=[]), 422, "invalid-request"),
    (
        "10,000 labels in one field",
        lambda api: send(api, labels=",".join(["cat"] * 10_000)),
        422,
        "invalid-request",
    ),
    ("10,000 fields", lambda api: send(api, labels=["cat"] * 10_000), 400, "malformed"),
    ("33 labels", lambda api: send(api, labels=["cat"] * 33), 422, "invalid-request"),
    ("a label of 50,000 letters", lambda api: send(api, labels="x" * 50_000), 422, "unknown-label"),
    ("a label of odd letters", lambda api: send(api, labels="\0\n☃🐈"), 422, "unknown-label"),
    ("unknown model", lambda api: send(api, model="nope"), 422, "invalid-request"),
    ("unknown refiner", lambda api: send(api, refine="magic"), 422, "invalid-request"),
    ("refiner twice", lambda api: send(api, refine="pamr+pamr"), 422, "invalid-request"),
    ("threshold 1", lambda api: send(api, background_threshold=1), 422, "invalid-request"),
    ("threshold nan", lambda api: send(api, background_threshold="nan"), 422, "invalid-request"),
    ("threshold text", lambda api: send(api, background_threshold="high"), 422, "invalid-request"),
    ("confidence -1", lambda api: send(api, min_confidence=-1), 422, "invalid-request"),
    ("power 0", lambda api: send(api, background_power=0), 422, "invalid-request"),
    ("power 11", lambda api: send(api, background_power=11), 422, "invalid-request"),
    (
        "threshold and power",
        lambda api: send(api, background_threshold=0.4, background_power=2),
        422,
        "invalid-request",
    ),
    ("labels to segment", lambda api: segment(api, labels="cat"), 422, "invalid-request"),
    (
        "segment: threshold",
        lambda api: segment(api, background_threshold=0.4),
        422,
        "invalid-request",
    ),
    ("segment: unknown model", lambda api: segment(api, model="nope"), 422, "invalid-request"),
    ("segment: confidence 1", lambda api: segment(api, min_confidence=1), 422, "invalid-request"),
    ("segment: not an image", lambda api: segment(api, b"hello"), 415, "unsupported-image"),
    ("segment: no body", lambda api: api.post("/segment"), 415, "not-multipart"),
    ("callback", lambda api: send(api, callback="http://x/"), 422, "invalid-request"),
    ("misspelt field", lambda api: send(api, treshold=0.4), 422, "invalid-request"),
    ("wait for ever", lambda api: api.post("/pseudo-mask?wait=1e9"), 415, "not-multipart"),
    (
        "wait beyond a minute",
        lambda api: api.post(
            "/pseudo-mask?wait=61", files={"image": png()}, data={"labels": "cat"}
        ),
        422,
        "invalid-request",
    ),
    (
        "two images",
        lambda api: api.post(
            "/pseudo-mask",
            files=[("image", ("a", png())), ("image", ("b", png()))],
            data={"labels": "cat"},
        ),
        400,
        "malformed",
    ),
    (
        "no image",
        lambda api: api.post("/pseudo-mask", files={"labels": (None, "cat")}),
        422,
        "invalid-request",
    ),
    (
        "image as text",
        lambda api: api.post(
            "/pseudo-mask", files={"labels": (None, "cat"), "image": (None, "text")}
        ),
        422,
        "invalid-request",
    ),
    ("not an image", lambda api: send(api, b"hello"), 415, "unsupported-image"),
    ("empty image", lambda api: send(api, b""), 422, "unreadable-image"),
    ("gif", lambda api: send(api, encoded("GIF")), 415, "unsupported-image"),
    ("pdf", lambda api: send(api, encoded("PDF")), 415, "unsupported-image"),
    ("animated png", lambda api: send(api, pictures.animation("PNG")), 415, "unsupported-image"),
    ("animated webp", lambda api: send(api, pictures.animation("WEBP")), 415, "unsupported-image"),
    ("truncated jpeg", lambda api: send(api, half("JPEG")), 422, "unreadable-image"),
    ("truncated png", lambda api: send(api, half("PNG")), 422, "unreadable-image"),
    ("truncated webp", lambda api: send(api, half("WEBP")), 422, "unreadable-image"),
    (
        "81 megapixels",
        lambda api: send(api, pictures.png_header(9000, 9000)),
        413,
        "image-too-large",
    ),
    (
        "1 gigapixel",
        lambda api: send(api, pictures.png_header(32000, 32000)),
        413,
        "image-too-large",
    ),
    ("huge body, length declared", lambda api: send(api, b"\0" * 4_000_000), 413, "body-too-large"),
    ("huge body in chunks", lambda api: raw(api, chunks()), 413, "body-too-large"),
    ("json", lambda api: api.post("/pseudo-mask", json={"labels": "cat"}), 415, "not-multipart"),
    (
        "url-encoded form",
        lambda api: api.post("/pseudo-mask", data={"labels": "cat"}),
        415,
        "not-multipart",
    ),
    ("a picture as body", lambda api: raw(api, png(), "image/png"), 415, "not-multipart"),
    (
        "a large picture as body",
        lambda api: raw(api, b"\0" * 1_900_000, "image/png"),
        415,
        "not-multipart",
    ),
    (
        "a large body where none belongs",
        lambda api: api.post("/health", content=b"x" * 10**6),
        405,
        "method-not-allowed",
    ),
    ("no body at all", lambda api: api.post("/pseudo-mask"), 415, "not-multipart"),
    ("no boundary", lambda api: raw(api, b"x", "multipart/form-data"), 400, "malformed"),
    ("garbage between boundaries", lambda api: raw(api, b"garbage"), 400, "malformed"),
    ("empty form", lambda api: raw(api, b"--X--\r\n"), 422, "invalid-request"),
    ("unknown job", lambda api: api.get("/jobs/" + "0" * 32), 404, "unknown-job"),
    ("no job id at all", lambda api: api.get("/jobs/..%2F..%2Fetc"), 404, "not-found"),
    ("odd job id", lambda api: api.get("/jobs/a%20b:c*%00"), 404, "unknown-job"),
    ("long job id", lambda api: api.get("/jobs/" + "0" * 10_000), 404, "unknown-job"),
    ("unknown job's mask", lambda api: api.get("/jobs/0/mask.png"), 404, "unknown-job"),
    ("unknown file", lambda api: api.get("/jobs/0/mask.gif"), 404, "not-found"),
    ("unknown path", lambda api: api.get("/nope"), 404, "not-found"),
    ("wrong method", lambda api: api.delete("/models"), 405, "method-not-allowed"),
    ("unknown problem", lambda api: api.get("/problems/nope"), 404, "not-found"),
    (
        "empty idempotency key",
        lambda api: api.post(
            "/pseudo-mask",
            files={"image": png()},
            data={"labels": "cat"},
            headers={"Idempotency-Key": ""},
        ),
        422,
        "invalid-request",
    ),
]


def encoded(file_format: str) -> bytes:
    return pictures.encode(pictures.photo(), file_format)


def half(file_format: str) -> bytes:
    return pictures.half(pictures.encode(pictures.photo(200, 200), file_format))


@pytest.mark.parametrize(
    ("act", "status", "name"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_refused(
    place: Place,
    small_api: httpx.Client,
    running_worker: WorkerProcess,
    act: Send,
    status: int,
    name: str,
) -> None:
    del running_worker
    response = act(small_api)
    problem = response.json()
    assert response.status_code == status == problem["status"]
    assert problem["type"] == f"/problems/{name}"
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["title"]
    assert problem["detail"]
    assert "Traceback" not in response.text
    assert "site-packages" not in response.text
    # Nothing is left behind: no job, and no upload that nobody works on.
    assert place.leftovers() == NOTHING
    assert place.redis.keys("rq:job:*") == []
    assert place.blobs.keys("uploads") == []
    # Each type says what to do about it.
    described = small_api.get(problem["type"]).json()
    assert described["status"] == status
    assert described["advice"]


def test_unknown_label_names_the_nearest(small_api: httpx.Client) -> None:
    problem = send(small_api, labels="dining tabel").json()
    assert problem["label"] == "dining tabel"
    assert problem["nearest"][0] == "dining table"
    assert "dining table" in problem["detail"]


def test_invalid_fields_are_named(small_api: httpx.Client) -> None:
    problem = send(small_api, callback="http://x/", min_confidence=2).json()
    assert {error["field"] for error in problem["errors"]} == {"callback", "min_confidence"}


def test_what_belongs_to_pseudo_masks_is_sent_there(small_api: httpx.Client) -> None:
    problem = segment(small_api, labels="cat", treshold=0.4).json()
    assert {error["field"]: error["message"] for error in problem["errors"]} == {
        "labels": "this request takes no such field; POST /pseudo-mask does",
        "treshold": "this request takes no such field",
    }


ODD_BUT_RIGHT: list[tuple[str, Callable[[], bytes], dict[str, int]]] = [
    ("1 x 1", lambda: png(width=1, height=1), {"width": 1, "height": 1, "exif_orientation": 1}),
    (
        "16-bit gray",
        pictures.sixteen_bit_gray,
        {"width": 5, "height": 1, "exif_orientation": 1},
    ),
    (
        "palette with transparency",
        lambda: pictures.palette(transparent=True),
        {"width": 2, "height": 1, "exif_orientation": 1},
    ),
    (
        "cmyk",
        lambda: pictures.encode(pictures.photo().convert("CMYK"), "JPEG"),
        {"width": 40, "height": 30, "exif_orientation": 1},
    ),
    (
        "turned by EXIF",
        lambda: pictures.encode(pictures.photo(), "JPEG", exif=turned()),
        {"width": 30, "height": 40, "exif_orientation": 6},
    ),
    (
        "a thin line",
        lambda: png(width=3000, height=1),
        {"width": 3000, "height": 1, "exif_orientation": 1},
    ),
]


def turned() -> Any:
    exif = pictures.Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    ("image", "record"), [row[1:] for row in ODD_BUT_RIGHT], ids=[row[0] for row in ODD_BUT_RIGHT]
)
def test_odd_but_right(
    place: Place,
    api: httpx.Client,
    worker: WorkerProcess,
    image: Callable[[], bytes],
    record: dict[str, int],
) -> None:
    del worker
    response = api.post(
        "/pseudo-mask?wait=30",
        # A wrong name and type of the part do not matter: the bytes say what it is.
        files={"image": ("x.exe", image(), "text/plain")},
        data={"labels": "cat"},
    )
    assert response.status_code == 200
    assert response.json()["status"] == "finished"
    assert response.json()["image"] == record
    wait_for(lambda: place.leftovers() == NOTHING)
