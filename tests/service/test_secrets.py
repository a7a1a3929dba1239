"""A password that is planted wherever a URL or a setting may hold one is in no message and no log of any program."""

import logging
from collections.abc import Iterator
from urllib.parse import quote

import pytest
import typer
from typer.testing import CliRunner

from service.__main__ import main as api
from service.client.cli import main as submit
from service.local.serve import main as serve
from service.settings import Settings
from worker.__main__ import app as worker
from worker.queue.rq import open_redis
from worker.storage import BlobError, BlobStore

_PARTS = ("topS", "ecrA", "gentB", "zebraC")
_SECRET = "topS#ecrA@gentB%25/zebraC"
_URLS = {
    "as it is": f"redis://:{_SECRET}@127.0.0.1:1/0",
    "with a user": f"redis://user:{_SECRET}@127.0.0.1:1/0",
    "as the user": f"redis://{_SECRET}@127.0.0.1:1/0",
    "encoded": f"redis://:{quote(_SECRET, safe='')}@127.0.0.1:1/0",
    "in the query": f"redis://127.0.0.1:1/0?password={quote(_SECRET, safe='')}",
    "in an odd option": f"redis://127.0.0.1:1/0?retry={quote(_SECRET, safe='')}",
    "of another scheme": f"http://:{_SECRET}@127.0.0.1:1/0",
    "of a socket": f"unix://:{_SECRET}@/nowhere/redis.sock",
    "without a scheme": _SECRET,
    "of TLS": f"rediss://:{_SECRET}@127.0.0.1:1/0?ssl_cert_reqs=odd",
}


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The programs set up the logs of their process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def _app(main: object) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)  # type: ignore[type-var]
    return app


_PROGRAMS: dict[str, tuple[typer.Typer, list[str]]] = {
    "serve": (_app(serve), ["--port", "59997"]),
    "worker": (worker, ["run"]),
    "health": (worker, ["health", "worker"]),
    "dead list": (worker, ["dead", "list"]),
    "dead requeue": (worker, ["dead", "requeue", "0123"]),
}


@pytest.mark.parametrize("program", _PROGRAMS)
@pytest.mark.parametrize("place", _URLS)
def test_of_redis(
    program: str, place: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REDIS_URL", _URLS[place])
    monkeypatch.setenv("SEMPLES_BLOBS", str(tmp_path))
    app, arguments = _PROGRAMS[program]
    data = ["--data", f"{tmp_path}/data"] if program == "serve" else []
    done = CliRunner().invoke(app, [*arguments, *data])
    assert done.exit_code in (1, 3)
    assert isinstance(done.exception, SystemExit)
    assert done.output.count("\n") == 1
    assert not [part for part in _PARTS if part in done.output + caplog.text]


@pytest.mark.parametrize("place", sorted(_URLS.keys() - {"encoded", "in the query"}))
def test_what_no_program_can_read(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", _URLS[place])
    monkeypatch.setenv("SEMPLES_BLOBS", "memory://secrets")
    for app, arguments in ((worker, ["janitor"]), (_app(api), [])):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 3
        assert done.output.count("\n") == 1
        assert not [part for part in _PARTS if part in done.output]


@pytest.mark.parametrize(
    "options",
    [
        "ssl_cert_reqs=none",
        "retry=1",
        "connection_class=x",
        "socket_timeout=soon",
        "decode_responses=1",
        "db=one",
        "x=y",
    ],
)
def test_odd_options_are_named(options: str) -> None:
    with pytest.raises(ValueError, match=rf"expected options .*got {options.partition('=')[0]}$"):
        open_redis(f"redis://127.0.0.1:1/0?{options}")


@pytest.mark.parametrize("path", ["abc", "0/1", "1.5", "-1?db=3", _SECRET.replace("@", "").partition("#")[0]])
def test_databases_are_numbers(path: str) -> None:
    with pytest.raises(ValueError, match="expected a number after the host in the Redis URL") as error:
        open_redis(f"redis://127.0.0.1:1/{path}")
    assert path not in str(error.value)


@pytest.mark.parametrize("path", ["", "/", "/0", "/3/", "/3?client_name=a"])
def test_databases_of_a_redis_url(path: str) -> None:
    open_redis(f"redis://127.0.0.1:1{path}").close()


@pytest.mark.parametrize("options", ["", "?db=3", "?health_check_interval=5&client_name=a", "?socket_keepalive=yes"])
def test_options_of_a_redis_url(options: str) -> None:
    open_redis(f"redis://u:p%40%23@127.0.0.1:1/0{options}").close()


@pytest.mark.parametrize(
    "url",
    [
        f"nothing://u:{_SECRET}@bucket",
        f"ftp2://u:{_SECRET}@h/path?x=1",
        f"s3:///u:{_SECRET}@",
        f"nothing://h?k={_PARTS[0]}",
    ],
)
def test_of_a_blob_store(url: str) -> None:
    with pytest.raises(BlobError) as error:
        BlobStore.open(url)
    assert not [part for part in _PARTS if part in str(error.value)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_studio_url", f"http://u:{_SECRET}@host"),
        ("cors_origins", f"https://u:{_SECRET}@host"),
        ("webhook_private", _SECRET),
        ("max_queue", _SECRET),
    ],
)
def test_of_a_setting(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"SEMPLES_{name.upper()}", value)
    with pytest.raises(ValueError, match=f"^SEMPLES_{name.upper()}: "):
        Settings.load()
    done = CliRunner().invoke(_app(api), [])
    assert done.exit_code == 3
    assert not [part for part in _PARTS if part in done.output]


@pytest.mark.parametrize(
    "url", [f"http://u:{_SECRET}@127.0.0.1:1", f"http://u:12#{_SECRET}@h", f"http://h/?k={_SECRET}", _SECRET]
)
def test_of_the_client(url: str, tmp_path: object) -> None:
    done = CliRunner().invoke(
        _app(submit), [f"{tmp_path}", "--labels", "cat", "--to", url, "--output", f"{tmp_path}/out"]
    )
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert not [part for part in _PARTS if part in done.output]
