"""API keys: their lines, the file that holds them, the command that makes them."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.middleware.auth import ApiKey, KeyRing, make_key, parse_keys
from tests.helpers.paths import ROOT

ALICE, ALICES = make_key("alice")
BOB, BOBS = make_key("bob")


def test_a_key_is_random_and_only_its_hash_is_remembered() -> None:
    key, remembered = make_key("alice")
    assert key != ALICE
    assert len(key) >= 43  # 256 bits in base 64
    assert remembered.digest == hashlib.sha256(key.encode()).hexdigest()
    assert key not in remembered.line


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a:b", "-a", "x" * 65, "ä", "a\nb"])
def test_a_name_that_will_not_do(name: str) -> None:
    with pytest.raises(ValueError, match="expected a name of at most 64 letters"):
        make_key(name)


def test_lines_comments_and_commas() -> None:
    text = f"# who\n\n{ALICES.line}  # until May\n  {BOBS.line}\r\n"
    assert parse_keys(text, source="x") == (ALICES, BOBS)
    assert parse_keys(f"{ALICES.line}, {BOBS.line}", source="x") == (ALICES, BOBS)
    assert parse_keys("# nobody", source="x") == ()


@pytest.mark.parametrize("line", ["alice", f"alice {ALICE}", ALICE, f"alice sha256:{'A' * 64}"])
def test_a_line_that_is_none_is_not_quoted(line: str) -> None:
    with pytest.raises(ValueError, match=r'^keys, line 2: expected "NAME sha256:HASH"$'):
        parse_keys(f"{BOBS.line}\n{line}", source="keys")


def test_owners() -> None:
    ring = KeyRing(file=None, lines=f"{ALICES.line},{BOBS.line}")
    assert [ring.owner(key) for key in (ALICE, BOB, "", ALICE[:-1], "ü", ALICES.digest)] == [
        "alice",
        "bob",
        None,
        None,
        None,
        None,
    ]


def test_a_changed_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text(ALICES.line)
    carol, carols = make_key("carol")
    ring = KeyRing(file=file, lines=carols.line)
    assert [ring.owner(key) for key in (ALICE, BOB, carol)] == ["alice", None, "carol"]

    write(file, BOBS)
    assert [ring.owner(key) for key in (ALICE, BOB, carol)] == [None, "bob", "carol"]

    # What cannot be read changes nothing, and is told once.
    with caplog.at_level(logging.ERROR):
        file.write_text(f"{ALICES.line}\nbob {BOB}")
        assert [ring.owner(key) for key in (ALICE, BOB)] == [None, "bob"]
        file.unlink()
        assert [ring.owner(key) for key in (ALICE, BOB)] == [None, "bob"]
    assert len(caplog.messages) == 2
    assert BOB not in caplog.text

    write(file, ALICES)
    assert [ring.owner(key) for key in (ALICE, BOB)] == ["alice", None]
    write(file)
    assert [ring.owner(key) for key in (ALICE, BOB, carol)] == [None, None, "carol"]


def write(file: Path, *keys: ApiKey) -> None:
    """As an editor does: a new file in the place of the old one."""
    new = file.with_suffix(".new")
    new.write_text("".join(f"{key.line}\n" for key in keys))
    new.replace(file)


def test_a_ring_without_keys_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least one API key, got none"):
        KeyRing(file=None, lines=" ,\n# none")
    with pytest.raises(ValueError, match=r"cannot read the API keys in .*nowhere: No such file"):
        KeyRing(file=tmp_path / "nowhere", lines="")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="expected UTF-8"):
        KeyRing(file=tmp_path / "binary", lines=ALICES.line)


def test_the_command_prints_a_line_that_is_good() -> None:
    program = "from models.cli import main; main()"
    command = [sys.executable, "-c", program, "api-key", "dave"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    key = done.stderr.split()[-1]
    assert KeyRing(file=None, lines=line).owner(key) == "dave"
    bad = subprocess.run(
        [*command[:-1], "da/ve"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert bad.returncode == 2
    assert bad.stderr.startswith("semples api-key: expected a name")
    assert bad.stdout == ""
