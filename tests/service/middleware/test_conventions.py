"""HEAD, packed bodies, a path before the API, other origins: what the ecosystem expects of any HTTP service."""

import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.app import create_app
from service.middleware.conventions import parse_prefix
from service.settings import Settings
from tests.helpers.posting import post, posted, wait_for_status
from tests.helpers.service_fixtures import Place, http_api, png

_PATHS = ("/", "/docs", "/openapi.json", "/health", "/ready", "/models", "/models/double", "/metrics", "/web/app.js")
_FILES = ("", "/mask.png", "/overlay.png", "/coco.json", "/scores.npz")


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("path", [*_PATHS, "/problems/malformed", "/web/examples/cat.jpg", "/label-studio/health"])
def test_head_is_get_without_a_body(api: httpx.Client, path: str) -> None:
    head, got = api.head(path), api.get(path)
    assert head.status_code == got.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":  # which counts these very requests
        assert head.headers["content-length"] == got.headers["content-length"] == str(len(got.content))


@pytest.mark.usefixtures("worker")
def test_head_of_a_job_its_files_and_its_events(api: httpx.Client) -> None:
    job = posted(api)
    wait_for_status(api, job, "finished")
    for path in _FILES:
        head, got = api.head(f"{job}{path}"), api.get(f"{job}{path}")
        assert (head.status_code, head.content) == (200, b"")
        assert {**head.headers, "date": "", "x-request-id": ""} == {**got.headers, "date": "", "x-request-id": ""}
    events = api.head(f"{job}/events")
    assert (events.status_code, events.content) == (200, b"")
    assert events.headers["content-type"].startswith("text/event-stream")
    tag = api.get(f"{job}/mask.png").headers["etag"]
    assert api.head(f"{job}/mask.png", headers={"If-None-Match": tag}).status_code == 304


def test_head_of_events_that_go_on_ends_at_once(api: httpx.Client, idle: Place) -> None:
    idle.announce()
    job = idle.post("cat")
    assert api.head(f"/jobs/{job.id}/events", timeout=20).status_code == 200


def test_head_of_what_is_not_there_and_of_posts(api: httpx.Client) -> None:
    assert api.head("/jobs/0123").status_code == api.head("/nothing").status_code == 404
    refused = api.head("/pseudo-mask")
    assert (refused.status_code, refused.headers["allow"], refused.content) == (405, "POST", b"")
    assert api.put("/health").headers["allow"] == "GET, HEAD"


_POSTS: list[tuple[str, dict[str, Any]]] = [
    ("/pseudo-mask", {"files": {"image": png()}, "data": {"labels": "cat"}}),
    ("/segment", {"files": {"image": png()}}),
    ("/batches", {"files": {"archive": b"PK"}}),
    ("/label-studio/setup", {"json": {"schema": "<View/>"}}),
]


@pytest.mark.parametrize(("path", "body"), _POSTS)
@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "X-Odd"])
def test_a_packed_body_is_refused_by_name(api: httpx.Client, path: str, body: dict[str, Any], encoding: str) -> None:
    request = api.build_request("POST", path, **body)
    headers = {"Content-Type": request.headers["content-type"], "Content-Encoding": encoding}
    answer = api.post(path, content=gzip.compress(request.read()), headers=headers)
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "identity"
    assert answer.json()["type"] == "/problems/content-encoding"
    assert f"Content-Encoding: {encoding}" in answer.json()["detail"]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_a_body_that_is_not_packed_is_taken(api: httpx.Client, encoding: str) -> None:
    headers = {"Content-Encoding": encoding}
    answer = api.post("/pseudo-mask", files={"image": png()}, data={"labels": "cat"}, headers=headers)
    assert answer.status_code == 202
    assert api.get("/health", headers={"Content-Encoding": "gzip"}).status_code == 200  # no body at all


@pytest.fixture(scope="module")
def below(place: Place) -> Iterator[httpx.Client]:
    with http_api(place, root_path="/ml", trusted_proxies="127.0.0.1") as client:
        yield client


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("strips", [True, False])
def test_below_a_path_every_link_has_it(below: httpx.Client, strips: bool) -> None:
    front = "" if strips else "/ml"
    answer = post(below, path=f"{front}/pseudo-mask", query="?wait=30", labels="cat")
    document = answer.json()
    assert answer.headers["location"] == f"/ml/jobs/{document['id']}"
    links = document["links"]
    paths = [each for each in links.values() if isinstance(each, str)] + list(links["cams"].values())
    assert all(each.startswith("/ml/jobs/") for each in paths)
    assert all(below.get(each if not strips else each.removeprefix("/ml")).status_code == 200 for each in paths)
    missing = below.get(f"{front}/jobs/0123").json()
    assert missing["type"] == "/ml/problems/unknown-job"
    assert below.get(f"{front}/problems/unknown-job").json()["type"] == missing["type"]
    assert below.get(f"{front}/openapi.json").json()["servers"] == [{"url": "/ml"}]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("headers", "root"),
    [
        ([], "/ml"),
        (["/other"], "/other"),
        (["/other/"], "/other"),
        (["/outer", "/inner"], "/outer/inner"),
        (["/outer, /inner"], "/outer/inner"),
        (["/"], ""),
        (["//evil.example"], "/ml"),
        (["https://evil.example"], "/ml"),
        (['/a"b'], "/ml"),
        (["/../x"], "/ml"),
    ],
)
def test_the_prefix_of_a_trusted_proxy(below: httpx.Client, headers: list[str], root: str) -> None:
    sent = [("X-Forwarded-Prefix", each) for each in headers]
    assert below.get("/jobs/0123", headers=sent).json()["type"] == f"{root}/problems/unknown-job"


def test_the_prefix_of_anybody_else_is_ignored(api: httpx.Client) -> None:
    answer = api.get("/jobs/0123", headers={"X-Forwarded-Prefix": "/other"})
    assert answer.json()["type"] == "/problems/unknown-job"


def test_keys_and_limits_are_those_of_the_call_below_the_path(place: Place) -> None:
    key = "a sha256:" + 64 * "0"
    with http_api(place, root_path="/ml", keys=key, max_body_bytes=10, max_batch_bytes=100_000) as api:
        assert api.get("/ml/health").status_code == 200
        assert api.get("/ml/models").json()["type"] == "/ml/problems/unauthorized"
        assert api.post("/ml/segment", content=b"x" * 99).json()["type"] == "/ml/problems/body-too-large"
        assert api.post("/ml/batches", content=b"x" * 99).status_code == 401


def test_the_page_is_reached_without_the_last_slash(below: httpx.Client) -> None:
    answer = below.get("/ml")
    assert (answer.status_code, answer.headers["location"]) == (307, "/ml/")
    assert below.get("/ml/").headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("prefix", ["ml", "/a b", "//a", "/a//b", "/é", "/a?b", "/..", "/a/./b", "http://x/ml"])
def test_odd_prefixes_are_refused(prefix: str) -> None:
    with pytest.raises(ValidationError, match="expected a path such as"):
        Settings(root_path=prefix)


@pytest.mark.parametrize(
    ("text", "prefix"), [("", ""), ("/", ""), ("/ml", "/ml"), ("/ml/", "/ml"), ("/a/b.c", "/a/b.c")]
)
def test_prefixes(text: str, prefix: str) -> None:
    assert parse_prefix(text) == prefix


@pytest.mark.parametrize("prefix", ["/jobs", "/web", "/health", "/models/x"])
def test_a_prefix_like_a_call_is_refused(place: Place, prefix: str) -> None:
    with pytest.raises(ValueError, match="does not begin as a call"):
        create_app(Settings(root_path=prefix), place.redis, place.blobs)


_PAGE = "https://tool.example"


def _preflight(api: httpx.Client, origin: str = _PAGE) -> httpx.Response:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    return api.options("/pseudo-mask", headers={"Origin": origin, **asked})


def test_no_other_origin_by_default(api: httpx.Client) -> None:
    assert _preflight(api).status_code == 405
    assert not [name for name in api.get("/health", headers={"Origin": _PAGE}).headers if "access-control" in name]


@pytest.mark.parametrize("origins", [_PAGE, f"http://localhost:3000, {_PAGE}", "*"])
def test_pages_of_the_origins_in_the_setting_may_call(place: Place, origins: str) -> None:
    with http_api(place, cors_origins=origins, keys="a sha256:" + 64 * "0") as api:
        allowed = _preflight(api)
        assert allowed.status_code == 200  # without a key, which a browser does not send yet
        assert allowed.headers["access-control-allow-origin"] in (_PAGE, "*")
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        refused = api.get("/models", headers={"Origin": _PAGE})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] in (_PAGE, "*")
        assert "Location" in refused.headers["access-control-expose-headers"]
        elsewhere = api.get("/health", headers={"Origin": "https://evil.example"})
        assert elsewhere.headers.get("access-control-allow-origin") == ("*" if origins == "*" else None)


@pytest.mark.parametrize("origins", ["tool.example", "https://tool.example/", "https://a.example/x", "https://u@a"])
def test_odd_origins_are_refused(origins: str) -> None:
    with pytest.raises(ValidationError, match="or origins such as"):
        Settings(cors_origins=origins)


def _part(disposition: str, content: bytes) -> bytes:
    head = f"--B\r\nContent-Disposition: form-data; {disposition}\r\nContent-Type: image/png\r\n\r\n".encode()
    return head + content + b"\r\n"


@pytest.mark.parametrize("size", [100, 200_000])
@pytest.mark.parametrize("disposition", ['name="image"', "name=image"])
def test_a_file_part_without_a_filename_is_told_so(api: httpx.Client, disposition: str, size: int) -> None:
    body = _part('name="labels"', b"cat") + _part(disposition, bytes(size)) + b"--B--\r\n"
    answer = api.post("/pseudo-mask", content=body, headers={"Content-Type": "multipart/form-data; boundary=B"})
    assert answer.status_code in (400, 422)
    assert "filename=" in answer.json()["detail"]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("filename", ['filename=""', "filename=a", 'filename="a;b\\"c.png"'])
def test_any_filename_will_do(api: httpx.Client, filename: str) -> None:
    body = _part('name="labels"', b"cat") + _part(f'name="image"; {filename}', png()) + b"--B--\r\n"
    answer = api.post("/pseudo-mask", content=body, headers={"Content-Type": "multipart/form-data; boundary=B"})
    assert answer.status_code == 202, json.dumps(answer.json())
