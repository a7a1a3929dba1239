"""Photos that no other test has, posting them over HTTP, and waiting for their jobs."""

import itertools
from typing import Any

import httpx

from tests.helpers.service_fixtures import png, wait_for

_NUMBERS = itertools.count()


def new_photo(*, finds: int = 0, **size: int) -> bytes:
    """A photo that no job is about yet; the double's segmenter finds the class of index ``finds`` in it."""
    red, green = divmod(next(_NUMBERS), 200)
    return png(color=(100 + red, 20 + green, finds), **size)


def post(
    api: httpx.Client,
    image: bytes | None = None,
    labels: Any = None,
    *,
    path: str = "/pseudo-mask",
    query: str = "",
    headers: Any = None,
    **form: Any,
) -> httpx.Response:
    """Post an image, by default a new one; a pseudo mask's label is "cat" by default."""
    if labels is None and path == "/pseudo-mask":
        labels = "cat"
    files = {"image": ("photo.png", new_photo() if image is None else image)}
    data = form if labels is None else {"labels": labels, **form}
    return api.post(f"{path}{query}", files=files, data=data, headers=headers)


def segment(api: httpx.Client, image: bytes | None = None, **options: Any) -> httpx.Response:
    return post(api, image, path="/segment", **options)


def posted(api: httpx.Client, image: bytes | None = None, labels: Any = None) -> str:
    """Post an image; the path of its job."""
    answer = post(api, image, labels)
    assert answer.status_code == 202
    return str(answer.headers["Location"])


def status(api: httpx.Client, path: str) -> str:
    return str(api.get(path).json()["status"])


def wait_for_status(api: httpx.Client, path: str, *expected: str, seconds: float = 30) -> dict[str, Any]:
    """Wait until a job or a batch has one of these statuses; its document."""
    wait_for(lambda: status(api, path) in expected, seconds=seconds, what=f"{path} {expected}")
    document: dict[str, Any] = api.get(path).json()
    return document
