"""Logs: lines that machines read, with the ids of job and request and without secrets."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from worker.telemetry import about_job, configure_logging, request_id, scrub


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the root logger's lines go; afterwards all is as before."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for handler in handlers:
        root.removeHandler(handler)  # not closed by what is configured here
    token = request_id.set("")
    yield io.StringIO()
    request_id.reset(token)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_say_what_about_which_job(stream: io.StringIO) -> None:
    configure_logging("json", stream=stream)
    log = logging.getLogger("test")
    log.info("before")
    with about_job("j1", request="r1"):
        log.warning("within %d", 1)
        log.warning("another", extra={"job": "j2"})
    log.info("after")
    before, within, another, after = lines(stream)
    assert set(before) == {"time", "level", "logger", "message"}
    assert within["message"] == "within 1"
    assert (within["level"], within["logger"]) == ("WARNING", "test")
    assert (within["job"], within["request"]) == ("j1", "r1")
    assert (another["job"], another["request"]) == ("j2", "r1")
    assert "job" not in after


def test_an_exception_is_one_line(stream: io.StringIO) -> None:
    configure_logging("json", stream=stream)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("test").exception("failed")
    [line] = lines(stream)
    assert line["message"] == "failed"
    assert line["exception"].endswith("ValueError: two\nlines")


def test_what_others_attach_stays_out(stream: io.StringIO) -> None:
    configure_logging("json", stream=stream)
    arguments = {"labels": ["cat"], "callback_url": "https://a/b?key=1"}
    logging.getLogger("rq.worker").error(
        "failed", extra={"arguments": arguments, "kwargs": {}, "outcome": "failed"}
    )
    [line] = lines(stream)
    assert set(line) == {"time", "level", "logger", "message", "outcome"}


def test_text_lines_have_the_ids_at_the_end_of_the_first(stream: io.StringIO) -> None:
    configure_logging("text", stream=stream)
    log = logging.getLogger("test")
    log.info("alone")
    with about_job("j1", request="r1"):
        log.info("first\nsecond")
    alone, first, second = stream.getvalue().splitlines()
    assert alone.endswith(" INFO test: alone")
    assert first.endswith(" INFO test: first [job=j1 request=r1]")
    assert second == "second"


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_line_has_a_urls_secrets(stream: io.StringIO, form: Any) -> None:
    configure_logging(form, stream=stream)
    log = logging.getLogger("test")
    log.info("posting to %s", "https://host.example/hook?token=s3cret")
    try:
        raise OSError("cannot reach redis://user:s3cret@host:6379/0")
    except OSError:
        log.exception("lost")
    logging.getLogger("httpx").info("GET https://host/?token=s3cret")
    assert "s3cret" not in stream.getvalue()
    assert "host.example/hook" in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("redis://:pw@host:6379/0", "redis://…@host:6379/0"),
        ("rediss://u:p@h", "rediss://…@h"),
        ("at 'https://h/a?b=c', then", "at 'https://h/a?…', then"),
        ("https://h/a?b=c&d=https://x", "https://h/a?…"),
        ("no url: why? a@b.c", "no url: why? a@b.c"),
        ("https://h/a", "https://h/a"),
    ],
)
def test_scrub(text: str, scrubbed: str) -> None:
    assert scrub(text) == scrubbed
