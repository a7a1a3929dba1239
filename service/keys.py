"""API keys: names and hashes, from a file and from the environment; ``python -m service.keys NAME`` makes one."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from worker.program import run_program

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LINE = re.compile(rf"({_NAME.pattern})\s+sha256:([0-9a-f]{{64}})")
_KEY_BYTES = 32


@dataclass(frozen=True)
class ApiKey:
    """Who a key belongs to, and the SHA-256 of the key in hex.

    A slow hash with salt protects what people think up. Our keys are 256 random bits: nobody can try them
    out, so a quick hash keeps them as safe, and costs each request next to nothing.
    """

    name: str
    digest: str

    @property
    def line(self) -> str:
        """The key's line in a file."""
        return f"{self.name} sha256:{self.digest}"


def make_key(name: str) -> tuple[str, ApiKey]:
    """Return a new key and what to remember of it.

    Raises:
        ValueError: if the name holds anything but letters, digits, dots, dashes and underscores.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"expected a name of at most 64 letters, digits, '.', '-' and '_', got {name[:80]!r}"
        )
    key = f"semples_{secrets.token_urlsafe(_KEY_BYTES)}"
    return key, ApiKey(name, _digest(key))


def parse_keys(text: str, *, source: str) -> tuple[ApiKey, ...]:
    """Read lines of a name and a hash; what follows a # is a comment.

    Several lines may bear the same name, as they do while a key is being replaced.

    Args:
        text: the lines, with commas or line breaks between them.
        source: where they are from, for the error.

    Raises:
        ValueError: if a line is none; it is not quoted, for it may hold a key by mistake.
    """
    keys = []
    for number, line in enumerate(text.replace(",", "\n").splitlines(), 1):
        content = line.partition("#")[0].strip()
        match = _LINE.fullmatch(content)
        if match:
            keys.append(ApiKey(match[1], match[2]))
        elif content:
            raise ValueError(f'{source}, line {number}: expected "NAME sha256:HASH"')
    return tuple(keys)


class KeyRing:
    """The keys that are good now.

    The file is read again when it has changed. If it cannot be read then, the keys from before stay good and the log
    says so; a file without keys lets nobody in.

    Args:
        file: of keys.
        lines: more of them, as ``parse_keys`` takes them.

    Raises:
        ValueError: if the file cannot be read, a line is none, or there is no key at all.
    """

    def __init__(self, *, file: Path | None, lines: str) -> None:
        self._file = file
        self._fixed = parse_keys(lines, source="SEMPLES_KEYS")
        self._stamp = _stamp(file)
        self._from_file = _read(file)
        if not (self._fixed or self._from_file):
            raise ValueError("expected at least one API key, got none (semples api-key makes one)")

    def owner(self, key: str) -> str | None:
        """Return the name that a key belongs to, or None.

        Every key is compared, each in constant time: how long it takes says nothing.
        """
        self._refresh()
        digest = _digest(key)
        owner = None
        for each in (*self._fixed, *self._from_file):
            if hmac.compare_digest(each.digest, digest):
                owner = each.name
        return owner

    def _refresh(self) -> None:
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._from_file = _read(self._file)
        except ValueError as error:
            log.error("the API keys from before stay good: %s", error)
        else:
            log.info("read %d API keys from %s", len(self._from_file), self._file)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _read(file: Path | None) -> tuple[ApiKey, ...]:
    if file is None:
        return ()
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read the API keys in {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read the API keys in {file}: expected UTF-8") from error
    return parse_keys(text, source=str(file))


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    """Return what changes when a file does, or None without one."""
    if file is None:
        return None
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def main(name: Annotated[str, typer.Argument(help="Whose key it is.")]) -> None:
    """Make an API key: its line for SEMPLES_KEYS_FILE on standard output, the key itself beside it on standard error.

    The key is shown this once and kept nowhere.
    """
    try:
        key, remembered = make_key(name)
    except ValueError as error:
        typer.echo(f"semples api-key: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"{name}'s key, which is not shown again: {key}", err=True)
    typer.echo(remembered.line)


if __name__ == "__main__":
    run_program(main, "semples api-key")
