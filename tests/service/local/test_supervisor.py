"""Child processes: they end with their parent, are killed after their grace, rotate their logs."""

import signal
import subprocess
import sys
from pathlib import Path

from service.local.supervisor import Child, Command
from tests.helpers.paths import ROOT
from tests.helpers.service_fixtures import stop, wait_for
from tests.helpers.serving import alive


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from service.local.supervisor import Child, Command;"
        f"child = Child(Command('sleep', ['/bin/sleep', '600'], log=Path({str(tmp_path / 'log')!r})));"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    wait_for(lambda: b"/bin/sleep" in Path(f"/proc/{pid}/cmdline").read_bytes())
    parent.kill()
    parent.communicate()
    wait_for(lambda: not alive({pid}), what="its end")


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(15, signal.SIG_IGN);print('deaf', flush=True); time.sleep(600)",
    ]
    child = Child(Command("deaf", command, log=tmp_path / "log", grace=0.2))
    wait_for(lambda: child.last_log_line() == "deaf")
    stop(child)
    assert child.exit_code == -signal.SIGKILL


def test_logs_do_not_grow_without_end(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "echo.log"
    log.parent.mkdir()
    log.write_bytes(b"x" * (10 * 2**20 + 1))
    child = Child(Command("echo", ["/bin/echo", "hello"], log=log))
    child.wait()
    assert log.read_text() == "hello\n"
    assert (log.parent / "echo.log.1").stat().st_size > 10 * 2**20


def test_what_cannot_be_run(tmp_path: Path) -> None:
    child = Child(Command("nothing", ["/nonexistent"], log=tmp_path / "log"))
    child.wait()
    assert child.exit_code != 0
    assert "No such file" in child.last_log_line()
