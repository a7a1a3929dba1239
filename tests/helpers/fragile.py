"""A client's connection to Redis that breaks where a test says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from redis import UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError


class Fragile(UnixDomainSocketConnection):
    """Breaks with each command that holds the next of some words: before the server gets it, or after it was done."""

    words: ClassVar[list[bytes]] = []
    arrives = True
    at_break: ClassVar[Callable[[], object]] = list

    def send_packed_command(self, command: Any, check_health: bool = True) -> Any:
        content = command if isinstance(command, bytes) else b"".join(command)
        if not Fragile.words or Fragile.words[0] not in content:
            return super().send_packed_command(command, check_health)
        Fragile.words.pop(0)
        Fragile.at_break()
        if Fragile.arrives:
            super().send_packed_command(command, check_health)
            self.can_read(timeout=10)
        raise RedisConnectionError("broken")


def break_at(*words: bytes, arrives: bool, then: Callable[[], object] = list) -> None:
    Fragile.words[:], Fragile.arrives, Fragile.at_break = words, arrives, then
