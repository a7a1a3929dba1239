"""``semples submit``: a process against a real service, killed, interrupted, refused."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from models.data.mask_folder import read_results
from service.client.cli import _read_key, main
from service.middleware.auth import _make_key
from tests.helpers.client_fixtures import make_photos
from tests.helpers.paths import ROOT
from tests.helpers.posting import post
from tests.helpers.service_fixtures import Place, http_api, png, wait_for

pytestmark = pytest.mark.usefixtures("worker")  # each test finds a live worker

KEY, KNOWN = _make_key("alice")


@pytest.fixture(scope="module")
def url(place: Place) -> Iterator[str]:
    """A service that asks for a key."""
    with http_api(place, keys=KNOWN.line) as api:
        yield str(api.base_url)


def submit(*arguments: object, key: str | None = KEY) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "SEMPLES_KEY"}
    # A shell's background jobs ignore SIGINT, and so would what they start.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heed}; from models.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "submit", *map(str, arguments)],
        cwd=ROOT,
        env={**environment, **({"SEMPLES_KEY": key} if key else {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, output and errors; no key may be in them."""
    output, errors = process.communicate(timeout=60)
    assert KEY not in output + errors
    return process.returncode, output, errors


def results(output: Path) -> int:
    return len(read_results(output / "results.jsonl"))


def test_a_folder(url: str, tmp_path: Path) -> None:
    labels = make_photos(tmp_path, {"a.png": "cat", "b.png": "bowl", "bad.png": "cat", "c.png": ""}, shade=121)
    (tmp_path / "images" / "bad.png").write_bytes(b"no image")
    command = (tmp_path / "images", "--labels", labels, "--to", url, "--output", tmp_path / "out")
    code, output, errors = outcome(submit(*command, "--concurrency", 2))
    assert code == 1
    counted, passed_over = output.splitlines()
    assert counted.startswith("2 masks made, 0 kept (0 of all empty), 1 failed in ")
    assert counted.endswith(f" s: {tmp_path / 'out'}")
    assert passed_over == "1 photos have a row without a label and were passed over"
    assert "semples submit: bad.png: expected a JPEG, PNG or WebP image" in errors
    assert {path.name for path in (tmp_path / "out" / "masks").iterdir()} == {"a.png", "b.png"}

    (tmp_path / "images" / "bad.png").write_bytes(png(color=(121, 0, 9)))
    code, output, _ = outcome(submit(*command))
    assert code == 0
    assert output.startswith("1 masks made, 2 kept (0 of all empty), 0 failed in ")
    labels.write_text("image,labels\na.png,cat\n")  # the others' masks are of an earlier call
    code, output, _ = outcome(submit(*command))
    counted, others = output.splitlines()
    assert counted.startswith("0 masks made, 1 kept (0 of all empty), 0 failed in ")
    assert others.startswith(f"2 masks in {tmp_path / 'out'} are of photos that are not among ")
    code, output, errors = outcome(submit(*command, "--background-threshold", 0.7))
    assert (code, output) == (2, "")
    assert errors.splitlines()[-1].startswith("semples submit: expected ")
    assert errors.splitlines()[-1].endswith("options.background_threshold: 0.4 before, 0.7 now")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_in_the_middle(url: str, tmp_path: Path, place: Place, number: signal.Signals) -> None:
    """Killed or interrupted while a photo is at work, the same command makes the rest, and nothing twice."""
    photos = {"a.png": "cat", "b.png": "bowl", "slow.png": "slow", "z.png": "cat"}
    labels = make_photos(tmp_path, photos, shade=122 + (number == signal.SIGINT))
    out = tmp_path / "out"
    command = (tmp_path / "images", "--labels", labels, "--to", url, "--output", out)
    process = submit(*command, "--concurrency", 1)
    wait_for(lambda: results(out) == 2, what="two masks")
    process.send_signal(number)
    code, _, errors = outcome(process)
    if number == signal.SIGINT:
        assert code == 130
        assert errors.splitlines()[-1] == "semples submit: interrupted; the same command continues"
    else:
        assert code == -signal.SIGKILL
    assert results(out) == 2
    assert not (out / "summary.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    code, output, _ = outcome(submit(*command))
    assert (code, output.partition(" (")[0]) == (0, "2 masks made, 2 kept")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((out / "summary.json").read_text())["masks"] == 4
    wait_for(lambda: not any(place.leftovers().values()), what="an empty queue")


def test_one_photo(url: str, tmp_path: Path) -> None:
    photo = tmp_path / "cat.png"
    photo.write_bytes(png(color=(124, 0, 0)))
    (tmp_path / "key").write_text(f"{KEY}\n")
    command = (photo, "--to", url, "--key-file", tmp_path / "key", "--min-confidence", 0.1)
    out = tmp_path / "out"
    code, output, _ = outcome(submit(*command, "--labels", "cat, bowl", "--labels", "kitty", "--output", out, key=None))
    assert code == 0
    assert output.splitlines()[0].startswith("cat: 33.3% of the image, confidence 0.")
    stem = out / "cat"
    written = f"written to {stem}.png, {stem}_overlay.png and {stem}.json"
    assert output.splitlines()[-1] == written
    record = json.loads((out / "cat.json").read_text())
    assert (record["image"], record["exif_orientation"]) == ("cat.png", 1)
    assert record["options"]["min_confidence"] == 0.1
    with httpx.Client(base_url=url, headers={"X-API-Key": KEY}) as api:
        same = post(api, photo.read_bytes(), ["cat", "bowl"], query="?wait=30", min_confidence="0.1").json()
        assert (out / "cat.png").read_bytes() == api.get(same["links"]["mask"]).content
        assert (out / "cat_overlay.png").read_bytes() == api.get(same["links"]["overlay"]).content
    refused = submit(*command, "--labels", "cat", "--output", tmp_path, key=None)
    assert outcome(refused)[2].startswith("semples submit: expected an output folder that keeps")


APP = typer.Typer()
APP.command()(main)
WRONG, NOBODY = _make_key("bob")[0], "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("arguments", "key", "message"),
    [
        (("catt", "--to", "URL"), KEY, "expected a known label, got 'catt'; nearest known: cat"),
        (("raises", "--to", "URL"), KEY, "the model failed"),
        (("cat", "--to", "URL"), None, "expected Authorization: Bearer KEY, or X-API-Key (the key is"),
        (("cat", "--to", "URL"), WRONG, "unknown key"),
        (("cat", "--to", "URL"), "two words", "expected a key of printable ASCII"),
        (("cat", "--to", "host"), KEY, "expected the service's URL"),
        (("cat", "--to", NOBODY, "--retries", "0"), KEY, f"{NOBODY}: cannot reach the service: "),
        (("cat", "--to", "URL", "--refine", "nonsense"), KEY, "refine: "),
        (("cat", "--to", "URL", "--key-file", "/no/key"), KEY, "No such file or directory: /no/key"),
    ],
    ids=["label", "model", "no key", "unknown key", "not ASCII", "no URL", "no service", "refiner", "no key file"],
)
def test_refusals_are_one_line(
    url: str, tmp_path: Path, arguments: tuple[str, ...], key: str | None, message: str
) -> None:
    photo = tmp_path / "cat.png"
    photo.write_bytes(png(color=(125, 0, 0)))
    given = (url if each == "URL" else each for each in arguments)
    assert_refused(photo, "--labels", *given, key=key, message=message)
    assert list(tmp_path.iterdir()) == [photo]


def test_refusals_of_a_folder(url: str, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none")
    for labels, message in (
        (["--labels", nowhere], f"No such file or directory: {nowhere}"),
        (["--labels", "a", "--labels", "b"], "expected one file of labels for a folder, got 2"),
    ):
        assert_refused(tmp_path, *labels, "--to", url, key=KEY, message=message)
    message = f"{nowhere}: cannot read the file: No such file"
    assert_refused(nowhere, "--labels", "cat", "--to", url, key=KEY, message=message)
    assert list(tmp_path.iterdir()) == []


def assert_refused(*arguments: object, key: str | None, message: str) -> None:
    """One line, exit code 2, nothing written, no key shown."""
    done = CliRunner().invoke(APP, [*map(str, arguments)], env={"SEMPLES_KEY": key})
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"semples submit: {message}")
    assert "Traceback" not in done.stderr
    assert key is None or key not in done.stderr


def test_keys_are_read_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEMPLES_KEY", raising=False)
    assert _read_key(None) is None
    monkeypatch.setenv("SEMPLES_KEY", "from-the-environment")
    assert _read_key(None) == "from-the-environment"
    file = tmp_path / "key"
    file.write_text("from-a-file\n")
    assert _read_key(file) == "from-a-file"
    for content in (b"", b"two secrets", b"\xff\xfe"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="expected a key") as error:
            _read_key(file)
        assert "secrets" not in str(error.value)
