"""How the client reaches the real service, or says why not: URLs, keys, problems."""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest

from service.client import (
    BadImage,
    Client,
    InvalidRequest,
    JobFailed,
    NotFound,
    SemplesError,
    Unauthorized,
    Unavailable,
    UnknownLabel,
)
from service.middleware.auth import make_key
from tests.helpers.paths import ROOT
from tests.helpers.service_fixtures import Place, http_api

pytestmark = pytest.mark.usefixtures("worker")  # each test finds a live worker


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
    with pytest.raises(TypeError, match="got 'backgroud_threshold'"):
        client.pseudo_mask(photo, "cat", backgroud_threshold=0.3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="expected at least one label, got none"):
        client.pseudo_mask(photo, [])
    for wrong in ("", ".", ".."):
        with pytest.raises(ValueError, match="expected an id or a name"):
            client.job(wrong)
    with pytest.raises(NotFound):
        client.job("../models")


def test_keys(place: Place, photo: bytes) -> None:
    key, known = make_key("alice")
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
    with pytest.raises(ValueError, match="expected a URL without user and password") as error:
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


def test_the_client_needs_little() -> None:
    """In a fresh interpreter; httpx and what comes with it, numpy and Pillow."""
    code = (
        "import sys; before = set(sys.modules); import service.client; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name for name in done.stdout.split() if not name.startswith("_")}
    allowed = {"httpx", "httpcore", "h11", "anyio", "certifi", "idna", "numpy", "PIL"}
    allowed |= {"models", "service"}
    optional = {
        "click",
        "rich",
        "pygments",
        "zstandard",
        "brotli",
        "socksio",
        "h2",
        "typing_extensions",
        "cython_runtime",
    }
    assert loaded - sys.stdlib_module_names - allowed - optional == set()
    assert {"httpx", "numpy", "PIL"} <= loaded
