"""docs/http.md: every snippet runs against a live server and gives what the page shows."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.bundle.manifest import find_bundle, read_info
from models.inference.masks import fill_defaults
from service.api.errors import PROBLEMS
from service.api.schemas import _JOB
from service.middleware.auth import _make_key
from service.settings import Settings
from tests.helpers.markdown import DOCS, Block, blocks
from tests.helpers.paths import ROOT
from tests.helpers.service_fixtures import Place, WorkerProcess, http_api, png, valkey, wait_for
from tests.helpers.shell import Shell, require_curl

PAGE = "http.md"
TEXT = (DOCS / PAGE).read_text(encoding="utf-8")
KEY, REMEMBERED = _make_key("alice")
# The settings of servers by the word after a block's language.
SETTINGS: dict[str, dict[str, Any]] = {
    "": {"webhook_secret": "whsec_" + "A" * 32},
    "slow": {"body_seconds": 1.0, "body_rate": 10**9},
    "small": {"max_pixels": 10_000},
    "limited": {"rate": "2/minute"},
    "keys": {"keys": REMEMBERED.line},
}
STATE = "declare -p API PHOTO JOB ETAG 2>/dev/null > state || true"


def blocks_with_output() -> Iterator[tuple[Block, Block | None]]:
    """Each block that is run, and the one below it if that shows what comes out."""
    found = blocks(PAGE)
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.language in ("bash", "python"):
            shown = after if after and after.language in ("json", "text") else None
            yield block, shown


@pytest.fixture(scope="module")
def urls(
    place: Place, running_worker: WorkerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    running_worker.ensure()
    with contextlib.ExitStack() as stack:
        found = {}
        for word, settings in SETTINGS.items():
            client = stack.enter_context(http_api(place, resolve=_internet, **settings))
            found[word] = str(client.base_url).rstrip("/")
        elsewhere = stack.enter_context(valkey(tmp_path_factory.mktemp("alone")))
        client = stack.enter_context(http_api(elsewhere))
        found["alone"] = str(client.base_url).rstrip("/")
        yield found | {"busy": found[""]}


async def _internet(_host: str, _port: int) -> list[str]:
    return ["93.184.215.14"]


class Reader:
    def __init__(self, folder: Path, urls: dict[str, str]) -> None:
        self.shell, self.urls = Shell(folder), urls
        self.names: dict[str, Any] = {"KEY": KEY}

    def run(self, block: Block) -> str:
        word = block.words[0] if block.words else ""
        if word == "busy":
            self._keep_busy()
        text = block.text.replace("http://127.0.0.1:8000", self.urls[word])
        if block.language == "bash":
            at = f"API={self.urls[word]}; KEY={KEY}"
            return self.shell.run(f"[ ! -e state ] || source state\n{at}\n{text}\n{STATE}")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.chdir(self.shell.folder):
            exec(compile(text, f"{PAGE}:{block.line}", "exec"), self.names)
        return printed.getvalue()

    def close(self) -> None:
        if "api" in self.names:
            self.names["api"].close()

    def _keep_busy(self) -> None:
        posted = httpx.post(f"{self.urls['']}/pseudo-mask", files={"image": png()}, data={"labels": "slow"})
        path = posted.json()["links"]["self"]
        wait_for(lambda: httpx.get(f"{self.urls['']}{path}").json()["status"] == "running")


def covers(shown: Any, came: Any, where: str) -> None:
    """Check that what came has all keys that were shown, and the very type and status of a problem."""
    if isinstance(shown, dict):
        assert set(shown) <= set(came), f"{where}: {set(shown) - set(came)} not in {came}"
        for key, value in shown.items():
            covers(value, came[key], f"{where}.{key}")
    elif isinstance(shown, list) and shown and came:
        covers(shown[0], came[0], f"{where}[0]")
    elif where.endswith((".status", ".type", ".task", ".job_status", ".ready", ".field")):
        assert shown == came or {shown, came} <= {"queued", "running", "finished"}, where


def check(block: Block, shown: Block | None, output: str) -> None:
    where = f"{PAGE}:{block.line}"
    if shown is None:
        return
    if shown.language == "json":
        covers(json.loads(shown.text), json.loads(output), where)
        return
    for line in shown.text.splitlines():
        assert line in output.lower() or line in output, f"{where}: {line!r} not in {output!r}"


def test_every_snippet_runs_and_gives_what_is_shown(urls: dict[str, str], tmp_path: Path) -> None:
    require_curl()
    shutil.copytree(ROOT / "benchmarks" / "photos", tmp_path / "benchmarks" / "photos")
    reader = Reader(tmp_path, urls)
    try:
        for block, shown in blocks_with_output():
            check(block, shown, reader.run(block))
    finally:
        reader.close()
    _has_the_files(tmp_path)
    names = reader.names
    assert names["names"] == []
    assert names["cat"].any()
    assert names["stricter"].content.startswith(b"\x89PNG")
    assert {*names["scores"].files} >= {"scores", "class_index", "class_name", "image_size", "cams"}
    assert names["annotations"]
    assert names["learned"] == ["sofa"]
    assert names["prediction"]["result"]


def _has_the_files(folder: Path) -> None:
    for name in ("mask.png", "results/mask.png", "results/cam/cat.png", "strict.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert "cat.jpg" in (folder / "results" / "cvat.xml").read_text()
    assert json.loads((folder / "results" / "coco.json").read_text())["annotations"]
    assert (folder / "strict.png").read_bytes() != (folder / "results" / "mask.png").read_bytes()


def test_samples_have_the_settings_of_the_shipped_bundle() -> None:
    info = read_info(find_bundle("coco-demo"))
    fresh = dataclasses.asdict(fill_defaults(info.mask_options))
    samples = [json.loads(block.text) for block in blocks(PAGE) if block.language == "json"]
    shown = [each["options"] for each in samples if "options" in each]
    shown.append(_JOB["options"])
    assert len(shown) == 3
    for options in shown:
        assert options == {name: fresh[name] for name in options}
    [model] = [each["models"][0]["model"] for each in samples if each.get("models")]
    assert model["background_threshold"] == fresh["background_threshold"]
    assert model["refine"] == fresh["refine"]


def operations() -> list[tuple[str, str]]:
    schema = json.loads((DOCS / "openapi.json").read_text(encoding="utf-8"))
    return [(method.upper(), path) for path, methods in schema["paths"].items() for method in methods]


@pytest.mark.parametrize(("method", "path"), operations())
def test_every_call_is_on_the_page(method: str, path: str) -> None:
    assert re.search(rf"`{method} {re.escape(path)}`", TEXT), f"{method} {path} is not in {PAGE}"


def test_every_problem_is_in_the_table_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (.*?) \| .*? \|$", TEXT, re.MULTILINE)
    listed = {name: int(status) for status, names in rows for name in re.findall(r"`([a-z-]+)`", names)}
    assert listed == {kind.name: kind.status for kind in PROBLEMS.values()}


def test_each_status_has_an_example_that_runs() -> None:
    shown = [json.loads(after.text) for _, after in blocks_with_output() if after and after.language == "json"]
    examples = {each["status"] for each in shown if isinstance(each.get("status"), int)}
    assert examples >= {kind.status for kind in PROBLEMS.values()} - {500}  # no request makes it


def test_limits_are_those_of_the_settings() -> None:
    table = TEXT.partition("## Limits")[2]
    known = {f"SEMPLES_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"SEMPLES_[A-Z_]+", TEXT)) <= known
    fields = Settings.model_fields
    assert f"{fields['max_pixels'].default:,}" in table
    assert f"{fields['max_body_bytes'].default // 2**20} MiB" in table
