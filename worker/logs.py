"""Logs of all our processes: text or JSON lines, with the ids of job and request. Wire layer."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Literal, TextIO

from pythonjsonlogger.json import JsonFormatter

LogFormat = Literal["text", "json"]

request_id: ContextVar[str] = ContextVar("request_id", default="")
job_id: ContextVar[str] = ContextVar("job_id", default="")

_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Whatever else a record carries stays out: RQ, for one, adds a job's arguments.
_FIELDS: Final = (
    *("time", "level", "logger", "message", "job", "request", "exception"),
    *("method", "route", "status", "seconds", "outcome", "code"),
)
# They log one line for each job or URL, which we do ourselves, with ids and without secrets.
_TALKATIVE: Final = ("rq.worker", "httpx", "httpcore", "urllib3", "uvicorn.access")
_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@]*@", re.IGNORECASE)
_QUERY = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s?#'\"]*)\?[^\s'\"]*", re.IGNORECASE)


def configure_logging(form: LogFormat, *, stream: TextIO | None = None) -> None:
    """Have this process log to a stream, in place of what was configured before.

    Args:
        form: "text" for people, "json" for one object a line.
        stream: where to; None for standard error.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if form == "json" else TextLines(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


def scrub(text: str) -> str:
    """Take out of every URL in a text what may be secret: user, password and query."""
    return _QUERY.sub(r"\1?…", _USER.sub(r"\1…@", text))


@contextmanager
def about_job(job: str, *, request: str = "") -> Iterator[None]:
    """Have all lines logged inside carry a job's id, and that of the request that posted it."""
    tokens = job_id.set(job), request_id.set(request)
    try:
        yield
    finally:
        job_id.reset(tokens[0])
        request_id.reset(tokens[1])


def _ids(record: logging.LogRecord) -> dict[str, str]:
    """Return a record's ids: those it was logged with, else those of what is being done."""
    found = {
        "job": getattr(record, "job", None) or job_id.get(),
        "request": getattr(record, "request", None) or request_id.get(),
    }
    return {name: str(value) for name, value in found.items() if value}


class TextLines(logging.Formatter):
    """The message, with ids at the end of its first line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's lines; see logging."""
        first, newline, rest = scrub(super().format(record)).partition("\n")
        ids = " ".join(f"{name}={value}" for name, value in _ids(record).items())
        return f"{first} [{ids}]{newline}{rest}" if ids else f"{first}{newline}{rest}"


class JsonLines(JsonFormatter):
    """One object a line, of known fields alone."""

    def __init__(self) -> None:
        super().__init__(
            "%(levelname)s %(name)s %(message)s",
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            timestamp="time",
            json_ensure_ascii=False,
        )

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """Fill in a line's fields; see pythonjsonlogger."""
        super().add_fields(log_data, record, message_dict)
        log_data.update(_ids(record))

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Keep the known fields, scrubbed and in one order."""
        known = {name: log_data[name] for name in _FIELDS if log_data.get(name) is not None}
        return {
            name: scrub(value) if isinstance(value, str) else value for name, value in known.items()
        }
