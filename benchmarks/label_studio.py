"""``make label-studio``: a round trip through a real Label Studio, compared pixel for pixel.

It starts Label Studio and ``semples serve`` on the loopback address, makes a project with brush labels, uploads photos,
connects the service, which asks for a key, as the project's ML backend, and fetches predictions. A task that cannot be
predicted must be asked for again once it is mended. The masks that Label Studio then has are decoded by its own code,
twice: the stored predictions, and its export once a person has accepted them as annotations. Both must be the masks of
``POST /pseudo-mask`` and ``POST /segment``. Everything that it started ends with it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.demo import PHOTOS, free_port, serving, wait_until_ready

_START_SECONDS = 600.0  # it makes its database first
_PHOTOS = {"cat": "cat", "clock": "clock", "coffee": "cup, dining table", "café & (1)": ""}  # names, labels
_CLASSES = {"cat": 17, "cup": 47, "dining table": 67, "clock": 85}
_INTERFACE = (
    '<View><Image name="picture" value="$image"/><BrushLabels name="brush" toName="picture">'
    + "".join(f'<Label value="{name}"/>' for name in _CLASSES)
    + "</BrushLabels></View>"
)
_DECODE = """
import json, sys
import numpy
from label_studio_sdk.converter.brush import decode_rle
for target, region in json.load(sys.stdin):
    pixels = decode_rle(region["value"]["rle"])
    numpy.save(target, pixels.reshape(region["original_height"], region["original_width"], 4)[:, :, 3])
"""


@dataclass(frozen=True)
class _Studio:
    """A running Label Studio: its API, as a user who has logged in, and that user's personal access token."""

    api: httpx.Client
    token: str
    python: Path

    @property
    def url(self) -> str:
        return str(self.api.base_url).rstrip("/")

    def ask(self, method: str, path: str, **more: Any) -> Any:
        """Return the answer of a call, JSON; SystemExit if it is none."""
        headers = {"X-CSRFToken": self.api.cookies.get("csrftoken") or ""}
        answer = self.api.request(method, path, headers=headers, **more)
        if not answer.is_success:
            sys.exit(f"expected Label Studio to take {method} {path}, got {answer.status_code}: {answer.text[:2000]}")
        return answer.json() if "json" in answer.headers.get("content-type", "") else answer.content


def main() -> None:
    """Print what was compared; exit code 1 at the first pixel that differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", type=Path, required=True, help="virtual environment with label-studio")
    parser.add_argument("--bundle", default="coco-demo")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="semples-label-studio-") as folder,
        _label_studio(arguments.environment.absolute(), Path(folder)) as studio,
    ):
        made = subprocess.run(
            [sys.executable, "-m", "service.middleware.auth", "label-studio"],
            capture_output=True,
            text=True,
            check=True,
        )
        keys, key = Path(folder) / "keys.txt", made.stderr.split()[-1]
        keys.write_text(made.stdout)
        settings = {
            "SEMPLES_LABEL_STUDIO_URL": studio.url,
            "SEMPLES_LABEL_STUDIO_TOKEN": studio.token,
            "SEMPLES_KEYS_FILE": str(keys),
        }
        with serving(arguments.bundle, **settings) as service:
            _round_trip(studio, service, key, Path(folder))


def _round_trip(studio: _Studio, service: str, key: str, scratch: Path) -> None:
    version = studio.ask("GET", "/api/version")["label-studio-os-package"]["version"]
    project = studio.ask("POST", "/api/projects", json={"title": "round trip", "label_config": _INTERFACE})["id"]
    photos = {name: (PHOTOS / f"{name}.jpg" if labels else PHOTOS / "cat.jpg") for name, labels in _PHOTOS.items()}
    tasks = _import(studio, project, photos)
    _set_labels(studio, tasks[next(iter(tasks))], "unicorn")
    backend = {"url": f"{service}/label-studio", "project": project, "title": "SemPLeS"}
    backend |= {"auth_method": "BASIC_AUTH", "basic_auth_user": "any", "basic_auth_pass": key}
    connected = studio.ask("POST", "/api/ml", json=backend)
    print(f"Label Studio {version}: the ML backend is {connected['readable_state']}, {connected['model_version']}")
    first = next(iter(tasks))
    _retrieve_predictions(studio, project)
    if studio.ask("GET", "/api/predictions", params={"task": tasks[first]}):
        sys.exit(f"expected nothing stored for {first}, whose label the service does not know, got a prediction")
    _set_labels(studio, tasks[first], _PHOTOS[first])  # which also lets Label Studio ask, as opening the task does
    _retrieve_predictions(studio, project)
    expected = {name: _mask(service, key, photos[name], _PHOTOS[name]) for name in tasks}
    stored = {}
    for name, task in tasks.items():
        [prediction] = studio.ask("GET", "/api/predictions", params={"task": task})
        stored[name] = _decoded(studio, prediction["result"], expected[name].shape, scratch)
        studio.ask("POST", f"/api/tasks/{task}/annotations", json={"result": prediction["result"]})
    exported = _exported(studio, project, {task: np.zeros_like(expected[name]) for name, task in tasks.items()})
    wrong = 0
    for name, mask in expected.items():
        different = [int(np.count_nonzero(found != mask)) for found in (stored[name], exported[tasks[name]])]
        wrong += sum(different)
        classes = ", ".join(each for each, index in _CLASSES.items() if (mask == index).any())
        print(
            f"{name}.jpg, {mask.shape[1]} x {mask.shape[0]}, {classes}: {different[0]} pixels of the stored prediction "
            f"differ, {different[1]} of the exported annotation"
        )
    if wrong:
        sys.exit(1)


def _import(studio: _Studio, project: int, photos: Mapping[str, Path]) -> dict[str, int]:
    """Upload photos, give their tasks labels, and return the tasks' ids by name."""
    tasks = {}
    for name, path in photos.items():
        uploaded = {"file": (f"{name}.jpg", path.read_bytes(), "image/jpeg")}
        [number] = studio.ask(
            "POST", f"/api/projects/{project}/import", params={"return_task_ids": "1"}, files=uploaded
        )["task_ids"]
        _set_labels(studio, number, _PHOTOS[name])
        tasks[name] = number
    return tasks


def _set_labels(studio: _Studio, task: int, labels: str) -> None:
    data = studio.ask("GET", f"/api/tasks/{task}")["data"]
    studio.ask("PATCH", f"/api/tasks/{task}", json={"data": {**data, "labels": labels}})


def _retrieve_predictions(studio: _Studio, project: int) -> None:
    """Do what "Retrieve Predictions" does in the list of tasks."""
    action = {"id": "retrieve_tasks_predictions", "project": project}
    everything = {"selectedItems": {"all": True, "excluded": []}, "project": project}
    studio.ask("POST", "/api/dm/actions", params=action, json=everything)


def _mask(service: str, key: str, photo: Path, labels: str) -> NDArray[np.uint8]:
    """Return the label map that the service makes of a photo, with the classes of the interface alone."""
    path, form = ("/pseudo-mask", {"labels": labels}) if labels else ("/segment", {})
    answer = httpx.post(
        f"{service}{path}",
        params={"wait": 60},
        headers={"Accept": "image/png", "Authorization": f"Bearer {key}"},
        files={"image": (photo.name, photo.read_bytes())},
        data=form,
        timeout=90,
    ).raise_for_status()
    label_map = np.array(Image.open(io.BytesIO(answer.content)))
    return np.where(np.isin(label_map, list(_CLASSES.values())), label_map, 0).astype(np.uint8)


def _decoded(studio: _Studio, regions: list[Any], size: tuple[int, ...], scratch: Path) -> NDArray[np.uint8]:
    """Return the label map of brush regions, decoded by Label Studio's own converter."""
    targets = [str(scratch / f"{secrets.token_hex(8)}.npy") for _ in regions]
    asked = json.dumps(list(zip(targets, regions, strict=True)))
    subprocess.run([studio.python, "-c", _DECODE], input=asked, text=True, check=True)
    label_map = np.zeros(size, dtype=np.uint8)
    for target, region in zip(targets, regions, strict=True):
        label_map[np.load(target) > 0] = _CLASSES[region["value"]["brushlabels"][0]]
    return label_map


def _exported(studio: _Studio, project: int, maps: dict[int, NDArray[np.uint8]]) -> dict[int, NDArray[np.uint8]]:
    """Fill empty label maps, by task, from Label Studio's export of the annotations' brush labels to PNG."""
    content = studio.ask("GET", f"/api/projects/{project}/export", params={"exportType": "BRUSH_TO_PNG"})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            found = re.fullmatch(r"task-(\d+)-annotation-.*-brush-(.+)-\d+\.png", name)
            if found is None:
                sys.exit(f"expected a mask of brush labels, got {name}")
            maps[int(found[1])][np.array(Image.open(io.BytesIO(archive.read(name)))) > 0] = _CLASSES[found[2]]
    return maps


@contextmanager
def _label_studio(environment: Path, data: Path) -> Iterator[_Studio]:
    """Run Label Studio on a free port of the loopback address, with a user of its own and a token."""
    email, password, port = "person@example.org", secrets.token_urlsafe(12), free_port()
    settings = {
        "ML_BLOCK_LOCAL_IP": "false",  # else it refuses ML backends on its own machine
        "SSRF_PROTECTION_ENABLED": "false",  # and the webhook that it makes of each
        "SECRET_KEY": secrets.token_urlsafe(32),
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
    }
    command = [str(environment / "bin/label-studio"), "start", "--no-browser", "--internal-host", "127.0.0.1"]
    command += ["--port", str(port), "--data-dir", str(data), "--username", email, "--password", password]
    url, log = f"http://127.0.0.1:{port}", data / "label-studio.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
    try:
        with httpx.Client(base_url=url, timeout=120, follow_redirects=True) as api:
            wait_until_ready(f"{url}/health", server, "Label Studio", seconds=_START_SECONDS, log=log)
            studio = _Studio(api, "", environment / "bin" / "python")
            api.get("/user/login/")
            login = {"email": email, "password": password, "csrfmiddlewaretoken": api.cookies["csrftoken"]}
            studio.ask("POST", "/user/login/", data=login)
            yield _Studio(api, studio.ask("POST", "/api/token/")["token"], studio.python)
    finally:
        server.terminate()
        server.wait(timeout=60)


if __name__ == "__main__":
    main()
