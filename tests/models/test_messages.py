"""What people read: no secrets, no control characters, one line."""

import subprocess
import sys

import pytest

from models.messages import one_line, printable, without_secrets


@pytest.mark.parametrize("secret", ["plain", "a#b", "a@b", "a%40b", "a/b", "#@%/", "a?b=c", "a:b", "é&=+"])
@pytest.mark.parametrize("url", ["redis://:{}@host:1/0", "s3://key:{}@bucket/x", "https://u:{}@h?x=1", "HTTP://{}@h"])
def test_no_password_of_a_url_is_left(url: str, secret: str) -> None:
    text = f"cannot reach {url.format(secret)}: refused; {url.format(secret)!r}"
    assert secret not in without_secrets(text)
    assert "cannot reach" in without_secrets(text)


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("redis://:pw@host:6379/0", "redis://…@host:6379/0"),
        ("rediss://u:p@h", "rediss://…@h"),
        ("lost redis://u:a/b@c#d?e@h:1", "lost redis://…@h:1"),
        ("at 'https://h/a?b=c', then", "at 'https://h/a?…', then"),
        ("https://h/a?b=c&d=https://x", "https://h/a?…"),
        ("no url: why? a@b.c", "no url: why? a@b.c"),
        ("https://h/a", "https://h/a"),
    ],
)
def test_without_secrets(text: str, scrubbed: str) -> None:
    assert without_secrets(text) == scrubbed


@pytest.mark.parametrize("end", ["?password={}", "?a=1&token={}", "#{}", "?X-Amz-Signature={}#x"])
def test_no_secret_of_a_query_is_left(end: str) -> None:
    assert without_secrets(f"at http://h/p{end.format('hidden')} now") == f"at http://h/p{end[0]}… now"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat.jpg", "cat.jpg"),
        ("caf\udce9.jpg", r"caf\xe9.jpg"),
        ("a\nb", r"a\nb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\u202egpj.exe", r"a\u202egpj.exe"),
        ("a\u2028b\x85c\x7f", r"a\u2028b\x85c\x7f"),
        ("日本 é  ü", "日本 é  ü"),
        (r"C:\new", r"C:\new"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_one_line() -> None:
    assert one_line(ValueError("two  spaces\n  and a line\r\n")) == "two  spaces and a line"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_character_can_be_printed(encoding: str) -> None:
    program = r"from models.messages import accept_any_output as a; a(); print('日\udce9 …')"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, check=True, env={"PYTHONIOENCODING": encoding, "PATH": ""})
    assert done.stdout.rstrip().endswith((b"\\udce9 \\u2026", "\\udce9 …".encode()))
