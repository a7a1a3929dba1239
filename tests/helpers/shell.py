"""A user's shell, in a folder of its own, where ``semples`` is this very tree's."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


class Shell:
    """Runs scripts in a folder as people type them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "bin" / "semples"
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable}\nfrom models.cli import main\n\nmain()\n")
        program.chmod(0o755)
        places = [str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
        self.environment: Mapping[str, str] = {
            **{key: value for key, value in os.environ.items() if key != "REDIS_URL"},
            "PATH": os.pathsep.join(places),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }

    def start(self, script: str) -> subprocess.Popen[str]:
        """Start a script and leave it running."""
        return subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str) -> str:
        """Run a script to its end, which must be a good one; returns what it printed on standard output."""
        with self.start(script) as process:
            try:
                output, errors = process.communicate(timeout=300)
            except BaseException:  # pytest's own timeout is one
                process.kill()
                raise
        assert process.returncode == 0, f"{script}\n{output}\n{errors}"
        return output


def require_curl() -> None:
    """Skip the test, or in CI fail it, where there is no curl."""
    if shutil.which("curl") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("expected curl in CI, got none")
        pytest.skip("curl is not here, which the page's commands need")
