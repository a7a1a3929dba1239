"""The size of the code: files, lines and public names, and the files that one ``POST /pseudo-mask`` runs through.

python -m benchmarks.house            # counts the tracked files of models/, worker/ and service/
python -m benchmarks.house --request  # also starts `semples serve` and posts one photo to it
"""

from __future__ import annotations

import ast
import json
import os
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.overhead import post
from benchmarks.service_load.programs import Model, service

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGES: Final = ("models", "worker", "service")
_WINDOW_SECONDS = 3.0  # several heartbeats of the worker
_POLL_SECONDS = 0.1
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

# Python runs this file at the start of every process of the stack. It collects the functions that are called, forgets
# them when a file "begin-N" appears, and writes them down when "end-N" does.
_RECORDER = """
import json, os, sys, threading, time
folder, root = os.environ["SEMPLES_CALLS"], os.environ["SEMPLES_ROOT"]
seen = set()
def note(frame, event, argument):
    if event == "call":
        seen.add(frame.f_code)
def watch():
    for window in ("idle", "request"):
        for edge in ("begin", "end"):
            while not os.path.exists(os.path.join(folder, f"{edge}-{window}")):
                time.sleep(0.02)
            if edge == "begin":
                seen.clear()
        calls = [(code.co_filename, code.co_firstlineno) for code in seen.copy() if code.co_name != "<module>"]
        ours = [call for call in calls if call[0].startswith(root)]
        with open(os.path.join(folder, f"{window}-{os.getpid()}.json"), "w") as file:
            json.dump(ours, file)
threading.setprofile(note)
sys.setprofile(note)
threading.Thread(target=watch, daemon=True).start()
"""


def count(package: str) -> dict[str, int]:
    """Count a package's files, its lines, and its public functions and classes at the top level of a module."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / package).rglob("*.py"))]
    names = [
        node.name
        for text in texts
        for node in ast.parse(text).body
        if isinstance(node, _DEFINITIONS) and not node.name.startswith("_")
    ]
    return {
        "files": len(texts),
        "lines": sum(text.count("\n") for text in texts),
        "public names": len(names),
    }


def contracts() -> int:
    """Count the import contracts."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return len(settings["tool"]["importlinter"]["contracts"])


def request_files(bundle: str) -> list[str]:
    """Return the files that one request runs through, in all processes of ``semples serve``.

    Functions that also run while nothing is asked for, such as heartbeats, do not count.
    """
    with tempfile.TemporaryDirectory(prefix="semples-house-") as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(_RECORDER, encoding="utf-8")
        path = os.pathsep.join((name, str(ROOT)))
        os.environ |= {"PYTHONPATH": path, "SEMPLES_CALLS": name, "SEMPLES_ROOT": str(ROOT)}
        photo = (ROOT / "benchmarks" / "photos" / "cat.jpg").read_bytes()
        with service(folder, Model(bundle, refine="pamr", threads=0)) as port:
            post(port, photo, "cat", "pamr")  # what runs once alone is not counted
            for window in ("idle", "request"):
                (folder / f"begin-{window}").touch()
                time.sleep(_WINDOW_SECONDS)
                if window == "request":
                    post(port, photo, "cat", "random_walk+pamr")
                (folder / f"end-{window}").touch()
                time.sleep(10 * _POLL_SECONDS)
        idle, request = _calls(folder, "idle"), _calls(folder, "request")
    return sorted({file for file, _line in request - idle})


def _calls(folder: Path, window: str) -> set[tuple[str, int]]:
    """Read what all processes called: files relative to the repository, and lines."""
    calls = [tuple(call) for path in folder.glob(f"{window}-*.json") for call in json.loads(path.read_text())]
    relative = ((str(Path(file).relative_to(ROOT)), line) for file, line in calls)
    return {call for call in relative if call[0].split("/")[0] in PACKAGES}


def main(
    request: Annotated[bool, typer.Option("--request", help="Also trace one request.")] = False,
    bundle: Annotated[str, typer.Option(help="Name or folder of the bundle.")] = "coco-demo",
) -> None:
    """Print the figures as a Markdown table."""
    rows = {package: count(package) for package in PACKAGES}
    print("| package | files | lines | public names |\n|---|---|---|---|")
    for package, row in rows.items():
        print(f"| {package} |", *(f"{value} |" for value in row.values()))
    total = {key: sum(row[key] for row in rows.values()) for key in rows["models"]}
    print("| all |", *(f"{value} |" for value in total.values()))
    print(f"\nimport contracts: {contracts()}")
    if request:
        files = request_files(bundle)
        print(f"\nfiles that one POST /pseudo-mask runs through: {len(files)}\n")
        print("\n".join(f"* {file}" for file in files))


if __name__ == "__main__":
    typer.run(main)
