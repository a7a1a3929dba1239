"""What is sent: a right answer, or a clear 4xx with nothing left in queue or store."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import UploadFile

from models.data.classes import split_labels
from models.inference.masks import MaskOptions
from service.api.forms import PseudoMaskForm, _parse_wait, _wants_png, build_request
from tests.helpers.posting import post
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
    assert _parse_wait(query, prefer) == seconds


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("*/*", False),
        ("application/json", False),
        ("image/png", True),
        ("Image/PNG;q=0.9", True),
        ("image/png, */*;q=0.1", True),
        ("application/json, image/png", False),
        ("image/*", True),
        ("image/*;q=0.5, */*;q=0.1", True),
        ("image/*, application/json", False),
        ("image/*, application/*", False),
        ("image/png, */*", True),
        ("image/*, */*", True),
        ("image/png;q=0.5, application/json;q=0.4", True),
        ("image/png;q=0.4, application/json;q=0.5", False),
        ("image/png;q=0.4, */*;q=0.5", False),
        ("image/*, image/png;q=0", False),
        ("image/png;q=0", False),
        ("image/png; q=1.000 , application/json ; Q=0.9", True),
        ('image/png;note="a, application/json"', True),
        ("image/png;q=high", False),
        ("image/webp", False),
        ("text/html, image/avif, image/webp, */*;q=0.8", False),
        ("", False),
    ],
)
def test_wants_png(accept: str, wanted: bool) -> None:
    assert _wants_png(accept) is wanted


@pytest.mark.parametrize(
    ("fields", "background"),
    [
        # Of the model's class thresholds, those of the labels alone.
        ({}, {"background_threshold": 0.4, "class_thresholds": {"bowl": 0.6}}),
        ({"labels": ["cat"]}, {"background_threshold": 0.4}),
        # A rule in the request is for every class.
        ({"background_threshold": 0.4}, {"background_threshold": 0.4}),
        ({"background_power": 2}, {"background_power": 2.0}),
    ],
)
def test_the_background_is_the_models_unless_named(fields: dict[str, Any], background: dict[str, Any]) -> None:
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


Send = Callable[[httpx.Client], httpx.Response]
IMAGE, LABELS = {"image": png()}, {"labels": "cat"}


def sends(*image: bytes | Callable[[], bytes], **data: Any) -> Send:
    return lambda api: post(api, *(each() if callable(each) else each for each in image), **data)


def segments(*image: bytes, **data: Any) -> Send:
    return sends(*image, path="/segment", **data)


def posts(path: str = "/pseudo-mask", **request: Any) -> Send:
    return lambda api: api.post(path, **request)


def bodies(content: Any, content_type: str = MULTIPART) -> Send:
    headers = {"Content-Type": content_type}
    return lambda api: api.post("/pseudo-mask", content=content() if callable(content) else content, headers=headers)


def gets(path: str) -> Send:
    return lambda api: api.get(path)


def chunks() -> Iterator[bytes]:
    """A body that does not say how long it is."""
    yield b'--X\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    for _ in range(400):
        yield b"\0" * 10_000
    yield b"\r\n--X--\r\n"


def encoded(file_format: str) -> bytes:
    return pictures.encode(pictures.photo(), file_format)


def half(file_format: str) -> bytes:
    return pictures.half(pictures.encode(pictures.photo(200, 200), file_format))


NO_JOB = "/jobs/" + "0" * 32
REFUSED: dict[tuple[int, str], dict[str, Send]] = {
    (422, "unknown-label"): {
        "unknown label": sends(labels="cta"),
        "one unknown of two": sends(labels=["cat", "dogg"]),
        "a label of 50,000 letters": sends(labels="x" * 50_000),
        "a label of odd letters": sends(labels="\0\n☃🐈"),
    },
    (422, "invalid-request"): {
        "no labels": sends(labels=""),
        "commas only": sends(labels=" , ,"),
        "labels missing": sends(labels=[]),
        "10,000 labels in one field": sends(labels=",".join(["cat"] * 10_000)),
        "33 labels": sends(labels=["cat"] * 33),
        "unknown model": sends(model="nope"),
        "unknown refiner": sends(refine="magic"),
        "refiner twice": sends(refine="pamr+pamr"),
        "threshold 1": sends(background_threshold=1),
        "threshold nan": sends(background_threshold="nan"),
        "threshold text": sends(background_threshold="high"),
        "confidence -1": sends(min_confidence=-1),
        "power 0": sends(background_power=0),
        "power 11": sends(background_power=11),
        "threshold and power": sends(background_threshold=0.4, background_power=2),
        "labels to segment": segments(labels="cat"),
        "segment: threshold": segments(background_threshold=0.4),
        "segment: unknown model": segments(model="nope"),
        "segment: confidence 1": segments(min_confidence=1),
        "callback": sends(callback="http://x/"),
        "misspelt field": sends(treshold=0.4),
        "wait beyond a minute": posts("/pseudo-mask?wait=61", files=IMAGE, data=LABELS),
        "no image": posts(files={"labels": (None, "cat")}),
        "image as text": posts(files={"labels": (None, "cat"), "image": (None, "text")}),
        "empty form": bodies(b"--X--\r\n"),
        "empty idempotency key": posts(files=IMAGE, data=LABELS, headers={"Idempotency-Key": ""}),
    },
    (422, "unreadable-image"): {
        "empty image": sends(b""),
        "truncated jpeg": sends(lambda: half("JPEG")),
        "truncated png": sends(lambda: half("PNG")),
        "truncated webp": sends(lambda: half("WEBP")),
    },
    (415, "unsupported-image"): {
        "segment: not an image": segments(b"hello"),
        "not an image": sends(b"hello"),
        "gif": sends(lambda: encoded("GIF")),
        "pdf": sends(lambda: encoded("PDF")),
        "animated png": sends(lambda: pictures.animation("PNG")),
        "animated webp": sends(lambda: pictures.animation("WEBP")),
    },
    (413, "image-too-large"): {
        "81 megapixels": sends(lambda: pictures.png_header(9000, 9000)),
        "1 gigapixel": sends(lambda: pictures.png_header(32000, 32000)),
    },
    (413, "body-too-large"): {
        "huge body, length declared": sends(b"\0" * 4_000_000),
        "huge body in chunks": bodies(chunks),
    },
    (415, "not-multipart"): {
        "segment: no body": posts("/segment"),
        "wait for ever": posts("/pseudo-mask?wait=1e9"),
        "json": posts(json=LABELS),
        "url-encoded form": posts(data=LABELS),
        "a picture as body": bodies(png(), "image/png"),
        "a large picture as body": bodies(b"\0" * 1_900_000, "image/png"),
        "no body at all": posts(),
    },
    (400, "malformed"): {
        "10,000 fields": sends(labels=["cat"] * 10_000),
        "two images": posts(files=[("image", ("a", png())), ("image", ("b", png()))], data=LABELS),
        "no boundary": bodies(b"x", "multipart/form-data"),
        "garbage between boundaries": bodies(b"garbage"),
    },
    (405, "method-not-allowed"): {
        "a large body where none belongs": posts("/health", content=b"x" * 10**6),
        "wrong method": lambda api: api.delete("/models"),
    },
    (404, "unknown-job"): {
        "unknown job": gets(NO_JOB),
        "odd job id": gets("/jobs/a%20b:c*%00"),
        "long job id": gets("/jobs/" + "0" * 10_000),
        "unknown job's mask": gets("/jobs/0/mask.png"),
    },
    (404, "not-found"): {
        "no job id at all": gets("/jobs/..%2F..%2Fetc"),
        "unknown file": gets("/jobs/0/mask.gif"),
        "unknown path": gets("/nope"),
        "unknown problem": gets("/problems/nope"),
    },
}


@pytest.mark.parametrize(
    ("act", "status", "name"),
    [
        pytest.param(act, status, name, id=case)
        for (status, name), cases in REFUSED.items()
        for case, act in cases.items()
    ],
)
def test_refused(
    place: Place, small_api: httpx.Client, running_worker: WorkerProcess, act: Send, status: int, name: str
) -> None:
    response = act(small_api)
    problem = response.json()
    assert response.status_code == status == problem["status"]
    assert problem["type"] == f"/problems/{name}"
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["title"]
    assert problem["detail"]
    assert "Traceback" not in response.text
    assert "site-packages" not in response.text
    # Nothing is left behind: no job and no upload.
    assert place.leftovers() == NOTHING
    assert place.redis.keys("rq:job:*") == []
    assert place.blobs.keys("uploads") == []
    # Each type says what to do about it.
    described = small_api.get(problem["type"]).json()
    assert described["status"] == status
    assert described["advice"]


def test_unknown_label_names_the_nearest(small_api: httpx.Client) -> None:
    problem = post(small_api, labels="dining tabel").json()
    assert problem["label"] == "dining tabel"
    assert problem["nearest"][0] == "dining table"
    assert "dining table" in problem["detail"]


def test_invalid_fields_are_named(small_api: httpx.Client) -> None:
    problem = post(small_api, callback="http://x/", min_confidence=2).json()
    assert {error["field"] for error in problem["errors"]} == {"callback", "min_confidence"}


def test_what_belongs_to_pseudo_masks_is_sent_there(small_api: httpx.Client) -> None:
    problem = post(small_api, path="/segment", labels="cat", treshold=0.4).json()
    assert {error["field"]: error["message"] for error in problem["errors"]} == {
        "labels": "this request takes no such field; POST /pseudo-mask does",
        "treshold": "this request takes no such field",
    }


TURNED = pictures.Image.Exif()
TURNED[0x0112] = 6

# image → width, height, EXIF orientation
ODD_BUT_RIGHT: dict[str, tuple[Callable[[], bytes], tuple[int, int, int]]] = {
    "1 x 1": (lambda: png(width=1, height=1), (1, 1, 1)),
    "16-bit gray": (pictures.sixteen_bit_gray, (5, 1, 1)),
    "palette with transparency": (lambda: pictures.palette(transparent=True), (2, 1, 1)),
    "cmyk": (lambda: pictures.encode(pictures.photo().convert("CMYK"), "JPEG"), (40, 30, 1)),
    "turned": (lambda: pictures.encode(pictures.photo(), "JPEG", exif=TURNED), (30, 40, 6)),
    "a thin line": (lambda: png(width=3000, height=1), (3000, 1, 1)),
}


@pytest.mark.parametrize(("image", "record"), ODD_BUT_RIGHT.values(), ids=ODD_BUT_RIGHT)
def test_odd_but_right(
    place: Place, api: httpx.Client, worker: WorkerProcess, image: Callable[[], bytes], record: tuple[int, int, int]
) -> None:
    response = api.post(
        "/pseudo-mask?wait=30",
        # A wrong name and type of the part do not matter: the bytes say what it is.
        files={"image": ("x.exe", image(), "text/plain")},
        data={"labels": "cat"},
    )
    assert response.status_code == 200
    assert response.json()["status"] == "finished"
    keys = ("width", "height", "exif_orientation")
    assert response.json()["image"] == dict(zip(keys, record, strict=True))
    wait_for(lambda: place.leftovers() == NOTHING)
