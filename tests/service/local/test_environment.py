"""Where people start programs: under nohup, without a home, in any folder, with odd settings of Python."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from models.cli.data import _shell
from service.local import redis_server, serve
from tests.helpers.paths import PHOTO, ROOT
from tests.helpers.service_fixtures import valkey
from worker.queue.registry import live_workers
from worker.queue.rq import open_redis
from worker.storage import BlobStore

_PROGRAM = """
import signal, sys
for name in sys.argv[2:]:
    signal.signal(getattr(signal, name), signal.SIG_IGN)
from service.local.supervisor import StopRequestedError, Supervisor
import os
with Supervisor(print) as supervisor:
    for name in sys.argv[2:]:
        os.kill(os.getpid(), getattr(signal, name))
    supervisor._tick()
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    try:
        supervisor._tick()
    except StopRequestedError:
        print("stopped")
"""


@pytest.mark.parametrize(
    ("heard", "ignored"), [("SIGTERM", ["SIGHUP"]), ("SIGHUP", ["SIGINT"]), ("SIGINT", ["SIGHUP", "SIGTERM"])]
)
def test_an_ignored_signal_stays_ignored(heard: str, ignored: list[str]) -> None:
    command = [sys.executable, "-c", _PROGRAM, heard, *ignored]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")


_SERVERS = """
import signal, threading, os
signal.signal(signal.SIGINT, signal.SIG_IGN)
import uvicorn
from service.__main__ import _Server
from worker.janitor import _stop_signals
stop = _stop_signals()
os.kill(os.getpid(), signal.SIGINT)
assert not stop.is_set()
os.kill(os.getpid(), signal.SIGTERM)
assert stop.is_set()
server = _Server(uvicorn.Config(None))
with server.capture_signals():
    os.kill(os.getpid(), signal.SIGINT)
    assert not server.should_exit
    assert signal.getsignal(signal.SIGTERM) == server.handle_exit
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
"""


def test_the_janitor_and_the_api_keep_them_ignored_too() -> None:
    subprocess.run([sys.executable, "-c", _SERVERS], cwd=ROOT, timeout=100, check=True)


def test_a_child_hears_the_end_though_its_parent_does_not(tmp_path: Path) -> None:
    child = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "from pathlib import Path; from service.local.supervisor import Child, Command;"
        f"child = Child(Command('sleep', ['/bin/sleep', '600'], log=Path({str(tmp_path / 'log')!r}), grace=60));"
        "import time; time.sleep(1); child.ask_to_stop(); child.wait(); print(child.exit_code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", child], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    assert int(done.stdout) == -signal.SIGTERM


@pytest.mark.parametrize("error", [RuntimeError("no home"), KeyError("uid not found")])
def test_without_a_home_the_data_folder_is_asked_for(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_home(*_: object, **__: object) -> Path:
        raise error

    monkeypatch.setattr(serve, "user_data_path", no_home)
    with pytest.raises(typer.Exit) as ended:
        serve._default_data()
    assert ended.value.exit_code == 3
    message = capsys.readouterr().err
    assert "expected --data DIR" in message
    assert message.count("\n") == 1


_NOBODY = """
import os
from service.local.serve import _default_data
del os.environ["HOME"]
os.setgid(54321)
os.setuid(54321)
_default_data()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody unknown")
def test_an_unknown_user_without_a_home() -> None:
    environment = {**os.environ, "HOME": "/root"}
    command = [sys.executable, "-c", _NOBODY]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert "expected --data DIR" in done.stderr.splitlines()[0]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o555)
    yield folder
    folder.chmod(0o755)


def run_with_home(home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """``semples`` in a folder and with a home that it cannot write to, root's rights to write anywhere taken away."""
    as_others = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.getuid() == 0 else []
    code = "from models.cli import main; main()"
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*as_others, sys.executable, "-c", code, *map(str, arguments)],
        cwd=home, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.timeout(600)
def test_a_mask_with_a_read_only_home(read_only: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run_with_home(read_only, "predict", PHOTO, "--labels", "cat", "--bundle", tiny_bundle, "--output", output)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.suffix for path in output.iterdir()} == {".png", ".json"}
    assert list(read_only.iterdir()) == []


def test_serve_says_where_it_cannot_write_and_what_to_do(read_only: Path) -> None:
    done = run_with_home(read_only, "serve")
    assert done.returncode == 3
    folder = read_only / ".local" / "share" / "semples"
    assert done.stderr == f"semples serve: cannot use the data directory {folder}: Permission denied (--data DIR)\n"


_HELP = """
from service.app import create_app
from service.settings import Settings
from worker.storage import BlobStore
from redis import Redis
create_app(Settings(), Redis(), BlobStore.open("memory://x")).openapi()
from worker.settings import WorkerSettings
try:
    WorkerSettings.from_command_line(["--help"])
except SystemExit as end:
    assert not end.code
import sys
sys.argv = ["semples", "segment", "--help"]
from models.cli import main
main()
"""


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONOPTIMIZE": "1"}, {"PYTHONOPTIMIZE": "2"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
)
def test_settings_of_python(environment: dict[str, str]) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    done = subprocess.run(
        [sys.executable, "-c", _HELP],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]


_FOLDERS = [
    "a b",
    "a::b",
    "q\"u'o",
    "new\nline",
    "back\\slash",
    "tab\t",
    "#h?q%20&=",
    "é 日本",
    "caf\udce9",
    "memory:x",
    "$(id)",
    "-x",
    "l" * 200,
]


@pytest.mark.parametrize("name", _FOLDERS)
def test_queue_and_blobs_in_any_folder(name: str, tmp_path: Path) -> None:
    data = tmp_path / name
    data.mkdir()
    with valkey(data) as place:
        assert live_workers(open_redis(place.url)) == ()
        assert (data / "redis" / "appendonlydir").is_dir()
    store = BlobStore.open(str(data / "blobs"))
    key = store.put("uploads", b"content")
    assert BlobStore.open(str(data / "blobs")).get(key) == b"content"
    assert store.keys("uploads") == [key]
    assert (data / "blobs" / key).read_bytes() == b"content"
    assert os.fsencode(redis_server.socket_path(data)).decode()


@pytest.mark.parametrize("name", [*_FOLDERS[:-1], "it's", "`id`", "!!", "~", "*"])
def test_a_path_that_we_print_for_a_shell(name: str) -> None:
    command = ["bash", "-c", f"printf '%s' {_shell(Path(name))}"]
    printed = subprocess.run(
        command, capture_output=True, check=True, env={"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}
    )
    assert os.fsdecode(printed.stdout).removeprefix("./") == name
    assert _shell(Path(name)).isprintable()
