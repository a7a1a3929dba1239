"""Label Studio's ML backend protocol, and which images it can make this service fetch."""

import io
import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests.helpers.export_folder import reader
from tests.helpers.posting import new_photo, post
from tests.helpers.service_fixtures import Place, http_api

pytestmark = [
    pytest.mark.usefixtures("worker"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

BRUSH = """<View><Image name="photo" value="$picture"/>
<!-- of the whole image --><Choices name="shows" toName="photo"><Choice value="cat"/></Choices>
<BrushLabels name="brush" toName="photo">
  <Label value="Kitty"/><Label value="unicorn"/><Label value="bowl"/>
</BrushLabels></View>"""
POLYGON = BRUSH.replace("BrushLabels", "PolygonLabels")
CAT_AND_BOWL = [(1, "Kitty"), (2, "bowl")]


def inline(image: bytes | None = None) -> str:
    return "data:image/png;base64," + b64encode(image or new_photo()).decode()


def predict(api: httpx.Client, *tasks: dict[str, Any], config: str = BRUSH, **more: Any) -> Any:
    body = {"tasks": list(tasks), "label_config": config, "project": "1.17", "params": {}} | more
    answer = api.post("/label-studio/predict", json=body)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert len(results) == len(tasks)
    return results


def mask_of(api: httpx.Client, image: bytes, labels: str) -> Any:
    headers = {"Accept": "image/png"}
    answer = post(api, image, labels, query="?wait=30", headers=headers)
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_health_and_setup(api: httpx.Client) -> None:
    assert api.get("/label-studio/health").json() == {"status": "UP", "model_class": "SemPLeS"}
    body = {"project": "1.17", "schema": BRUSH, "hostname": "http://x", "access_token": "t"}
    answer = api.post("/label-studio/setup", json=body)
    assert (answer.status_code, answer.json()) == (200, {"model_version": "double 0123456789ab"})


def test_brush_regions_are_the_masks_pixels(api: httpx.Client) -> None:
    brush = reader("label_studio_converter.brush")
    image = new_photo()
    data = {"picture": inline(image), "labels": "cat, bowl"}
    (prediction,) = predict(api, {"id": 7, "data": data})
    assert prediction["model_version"] == "double 0123456789ab"
    assert 0 < prediction["score"] <= 1
    rebuilt = np.zeros((20, 30), dtype=np.uint8)
    for region in prediction["result"]:
        assert (region["from_name"], region["to_name"]) == ("brush", "photo")
        ((name, found),) = brush.decode_from_annotation("brush", [{**region, **region["value"]}]).items()
        rebuilt[found > 0] = {name: index for index, name in CAT_AND_BOWL}[name.split("-")[1]]
    assert np.array_equal(rebuilt, mask_of(api, image, "cat, bowl"))


def test_polygons_are_the_masks_pixels(api: httpx.Client) -> None:
    image = new_photo()
    task = {"data": {"picture": inline(image), "labels": ["cat", "bowl"]}}
    (prediction,) = predict(api, task, config=POLYGON)
    rebuilt = np.zeros((20, 30), dtype=np.uint8)
    for region in prediction["result"]:
        assert region["type"] == "polygonlabels"
        size = np.array([region["original_width"], region["original_height"]])
        points = (np.array(region["value"]["points"]) * size / 100).round().ravel().tolist()
        (label,) = region["value"]["polygonlabels"]
        decoded = coco_mask.decode(coco_mask.frPyObjects([points], 20, 30)[0])
        rebuilt[decoded == 1] = {name: index for index, name in CAT_AND_BOWL}[label]
    assert np.array_equal(rebuilt, mask_of(api, image, "cat, bowl"))


def labels_of(prediction: Any) -> list[str]:
    return [region["value"]["brushlabels"][0] for region in prediction["result"]]


def test_labels_are_choices_or_a_field_or_what_the_segmenter_finds(api: httpx.Client) -> None:
    choice = {"type": "choices", "from_name": "shows", "value": {"choices": ["cat", "blurred"]}}
    chosen = {"data": {"picture": inline()}, "annotations": [{"result": [choice]}]}
    found = {"data": {"picture": inline(new_photo(finds=2))}}
    setup = {"project": "1.18", "schema": BRUSH, "extra_params": '{"labels_field": "shows"}'}
    assert api.post("/label-studio/setup", json=setup).status_code == 200
    named = {"data": {"picture": inline(), "shows": ["bowl"], "labels": "cat"}}
    predictions = predict(api, chosen, named, found, project="1.18")
    assert [labels_of(each) for each in predictions] == [["Kitty"], ["bowl"], ["bowl"]]


def test_labels_are_matched_by_simple_normalization(api: httpx.Client) -> None:
    choice = {"type": "choices", "from_name": "shows", "value": {"choices": ["CATS", "many cats"]}}
    chosen = {"data": {"picture": inline()}, "annotations": [{"result": [choice]}]}
    listed = {"data": {"picture": inline(), "labels": ["Bowls"]}}
    written = {"data": {"picture": inline(), "labels": "bowls, CAT"}}
    config = BRUSH.replace("Kitty", "Cats")
    predictions = predict(api, chosen, listed, written, config=config)
    assert [labels_of(each) for each in predictions] == [["Cats"], ["bowl"], ["Cats", "bowl"]]


def test_a_task_that_cannot_be_predicted_says_why(api: httpx.Client) -> None:
    odd: list[dict[str, Any]] = [
        {},
        {"data": None},
        {"data": {"picture": 3}},
        {"data": {"picture": "data:image/png;base64,???"}},
        {"data": {"picture": "data:,x"}},
        {"data": {"picture": "/data/upload/1/a.jpg"}},
        {"data": {"picture": "http://127.0.0.1/a.jpg"}},
        {"data": {"picture": "file:///etc/passwd"}},
        {"data": {"picture": inline(), "labels": "unicorn"}},
        {"data": {"picture": inline(), "labels": "raises"}},
        {"data": {"picture": inline(), "labels": {"a": 1}}, "annotations": [3, {"result": [None]}]},
    ]
    good = {"data": {"picture": inline(), "labels": "cat"}}
    *failed, without_labels, fine = predict(api, *odd, good)
    # Label Studio stores every "result", even an empty one, and then does not ask for the task again.
    assert all(each["error"] and "result" not in each for each in failed)
    assert "unicorn" in failed[8]["error"]
    assert without_labels["result"] == []
    assert labels_of(fine) == ["Kitty"]


@pytest.mark.parametrize("context", [{}, {"result": []}])
def test_a_person_who_waits_gets_an_empty_result_too(api: httpx.Client, context: dict[str, Any]) -> None:
    unknown = {"data": {"picture": inline(), "labels": "unicorn"}}
    asked = {"login": None, "password": None, "context": context}
    (failed,) = predict(api, unknown, params=asked)
    assert failed["result"] == []
    assert "unicorn" in failed["error"]


def test_events_of_a_project_are_taken(api: httpx.Client) -> None:
    for event in ({"action": "ANNOTATION_CREATED", "annotation": {"id": 1}}, {"action": "TASKS_DELETED"}, {}):
        answer = api.post("/label-studio/webhook", json=event)
        assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize(
    "config",
    [
        "",
        "<View>",
        "<View/>",
        BRUSH.replace("$picture", "picture"),
        BRUSH.replace('toName="photo"', 'toName="other"'),
        '<!DOCTYPE x [<!ENTITY a "b">]>' + BRUSH,
        "\x00",
        "\ud800".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
    ],
)
def test_interfaces_without_regions(api: httpx.Client, config: str) -> None:
    for path, field in (("setup", "schema"), ("predict", "label_config")):
        body = {"tasks": [], field: config}
        answer = api.post(f"/label-studio/{path}", json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == field


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"tasks": 1}', b"\xff", b'{"a":' * 5000, b"[" * 100_000])
def test_bodies_that_are_no_tasks(api: httpx.Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    for path in ("setup", "predict"):
        answer = api.post(f"/label-studio/{path}", content=body, headers=headers)
        assert answer.status_code in (400, 422)
        assert answer.headers["content-type"] == "application/problem+json"


PERSONAL = "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.c2lnbmVk"


class Studio(BaseHTTPRequestHandler):
    """Serves one image to who has the token; redirects elsewhere; sends without end."""

    asked: list[str]
    image: bytes

    def do_POST(self) -> None:
        """Exchange a personal access token for one that opens images for a few minutes."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/ls/api/token/refresh/" or asked != {"refresh": PERSONAL}:
            self.send_error(401)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"access": "short-lived"}')

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.headers["Authorization"] not in ("Token secret", "Bearer short-lived"):
            self.send_error(401)
        elif self.path == "/ls/moved.png":
            self.send_response(302)
            self.send_header("Location", "/ls/data/a.png")
            self.end_headers()
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.image * (200_000 if "large" in self.path else 1))

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def studio() -> Iterator[tuple[str, type[Studio]]]:
    handler = type("One", (Studio,), {"asked": [], "image": new_photo()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/ls", handler
        server.shutdown()
        thread.join()


def test_images_of_the_configured_label_studio_alone(place: Place, studio: tuple[str, type[Studio]]) -> None:
    url, handler = studio
    host = url.removesuffix("/ls")
    good = ["/data/a.png", "data/a.png", f"{url}/data/a.png"]
    elsewhere = [
        "//127.0.0.1:1/a.png",
        "http://localhost:1/a.png",
        f"https://{host.removeprefix('http://')}/a.png",
        f"{host.replace('http://', 'http://user@')}/a.png",
        f"{host}@example.org/a.png",
        f"{host}\\@example.org/a.png",
        "http://[::1/a.png",
        "gopher://127.0.0.1/",
    ]
    settings = {"label_studio_url": url, "label_studio_token": "secret", "max_body_bytes": 2**20}
    with http_api(place, **settings) as api:
        tasks = [{"data": {"picture": each, "labels": "cat"}} for each in (*good, *elsewhere)]
        predictions = predict(api, *tasks)
        assert [labels_of(each) for each in predictions[: len(good)]] == [["Kitty"]] * len(good)
        assert all(each["error"] for each in predictions[len(good) :])
        assert len(handler.asked) == len(good)
        redirected, large = predict(
            api,
            {"data": {"picture": "/ls/moved.png", "labels": "cat"}},
            {"data": {"picture": "/ls/large.png", "labels": "cat"}},
        )
        assert "302" in redirected["error"]
        assert "at most" in large["error"]
    with http_api(place, **{**settings, "label_studio_token": "wrong"}) as api:
        (refused,) = predict(api, {"data": {"picture": "/data/a.png", "labels": "cat"}})
        assert "401" in refused["error"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_images_by_a_personal_access_token(place: Place, studio: tuple[str, type[Studio]], slash: str) -> None:
    url, _ = studio
    task = {"data": {"picture": "/ls/data/a.png", "labels": "cat"}}
    with http_api(place, label_studio_url=url + slash, label_studio_token=PERSONAL) as api:
        (prediction,) = predict(api, task)
        assert labels_of(prediction) == ["Kitty"]
    with http_api(place, label_studio_url=url, label_studio_token=PERSONAL + "x") as api:
        (refused,) = predict(api, task)
        assert refused["error"] == "Label Studio answers 401 for SEMPLES_LABEL_STUDIO_TOKEN"
        assert PERSONAL not in str(refused)
