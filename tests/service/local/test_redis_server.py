"""The embedded server: private and persistent."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from service.local import redis_server
from tests.helpers.service_fixtures import valkey, wait_for
from worker.queue.rq import open_redis


def test_only_this_user_can_reach_it(tmp_path: Path) -> None:
    with valkey(tmp_path) as place:
        path = redis_server.socket_path(tmp_path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert place.redis.config_get("port") == {"port": "0"} or place.redis.config_get("port") == {b"port": b"0"}


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
