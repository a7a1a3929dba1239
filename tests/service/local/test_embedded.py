"""The embedded server: private, persistent, tied to its parent."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from service.local import redis_server
from service.local.supervisor import Child, Command
from tests.helpers.paths import ROOT
from tests.helpers.service_fixtures import valkey, wait_for
from worker.queue.rq import open_redis


def test_only_this_user_can_reach_it(tmp_path: Path) -> None:
    with valkey(tmp_path) as place:
        path = redis_server.socket_path(tmp_path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert place.redis.config_get("port") == {"port": "0"} or place.redis.config_get(
            "port"
        ) == {b"port": b"0"}


def test_it_keeps_what_it_was_told(tmp_path: Path) -> None:
    with valkey(tmp_path) as place:
        place.redis.set("key", "value")
    with valkey(tmp_path) as place:
        assert place.redis.get("key") == b"value"


def test_odd_paths(tmp_path: Path) -> None:
    data = tmp_path / 'a "b" c%20ü'
    data.mkdir()
    with valkey(data) as place:
        assert place.redis.ping()
        assert (data / "redis" / "appendonlydir").is_dir()


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    data = tmp_path / ("long" * 40)
    data.mkdir()
    path = redis_server.socket_path(data)
    assert len(os.fsencode(path)) <= redis_server.MAX_SOCKET_PATH
    assert redis_server.socket_path(data) == path
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with valkey(data) as place:
        assert place.redis.ping()
    path.parent.chmod(0o755)
    with pytest.raises(redis_server.EmbeddedError, match="to be a folder of this user alone"):
        redis_server.socket_path(data)
    path.parent.rmdir()


def test_an_orphan_is_ended_and_its_data_kept(tmp_path: Path) -> None:
    path = redis_server.socket_path(tmp_path)
    command = redis_server.server_command(tmp_path, path, log=tmp_path / "log")
    orphan = subprocess.Popen([*command.arguments], stdout=subprocess.DEVNULL)
    wait_for(lambda: redis_server.answers(path))
    redis = open_redis(redis_server.socket_url(path))
    redis.set("key", "value")
    redis_server.end_orphan(path)
    assert orphan.wait(timeout=10) == 0
    assert not redis_server.answers(path)
    redis_server.end_orphan(path)  # nobody there: nothing to do
    with valkey(tmp_path) as place:
        assert place.redis.get("key") == b"value"


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
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), what="its end")


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(15, signal.SIG_IGN);"
        "print('deaf', flush=True); time.sleep(600)",
    ]
    child = Child(Command("deaf", command, log=tmp_path / "log", grace=0.2))
    wait_for(lambda: child.last_words() == "deaf")
    child.ask_to_stop()
    child.wait()
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
    assert "No such file" in child.last_words()
