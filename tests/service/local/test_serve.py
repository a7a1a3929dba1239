"""``semples serve``: everything starts, everything stops, refusals are one line."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from service.local import redis_server
from service.local.serve import _Stack, _worker_command
from service.local.supervisor import SECOND_SIGNAL_SECONDS
from service.settings import Settings
from tests.helpers.service_fixtures import png, valkey, wait_for
from tests.helpers.serving import Serving, alive, answers, cmdline, free_port, post, serving
from tests.helpers.webhooks import SECRET, Receiver, receiving

LOGS = {"api.log", "janitor.log", "redis.log", "worker.log"}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as there:
        yield there


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Serving]:
    """A stack that the tests before its end share."""
    env = {"SEMPLES_WEBHOOK_SECRET": SECRET, "SEMPLES_WEBHOOK_PRIVATE": "1"}
    with serving(tmp_path_factory.mktemp("serve") / "data", **env) as running:
        running.wait_ready()
        yield running


def end_in_order(stack: Serving, number: signal.Signals) -> str:
    """End a stack by a signal; return what it printed."""
    children = stack.children()
    assert len(children) >= 4
    code, output, errors = stack.end(number)
    assert (code, errors) == (0, "")
    assert f"ready: {stack.url}" in output
    assert output.splitlines()[-1] == "semples serve: stopped"
    assert alive(children) == set()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{stack.url}/health")
    assert {path.name for path in (stack.data / "logs").iterdir()} == LOGS
    assert stack.data.stat().st_mode & 0o777 == 0o700
    return output


def test_it_serves_and_stops(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as stack:
        stack.wait_ready()
        assert post(stack).json()["status"] == "finished"
        end_in_order(stack, signal.SIGINT)


@pytest.mark.parametrize("name", ["Application Support", "a::b #%20"])
def test_any_data_folder_and_a_path_before_the_api(name: str, tmp_path: Path) -> None:
    with serving(tmp_path / name, SEMPLES_ROOT_PATH="/ml") as stack:
        stack.wait_ready()
        document = post(stack).json()
        assert document["status"] == "finished"
        assert httpx.get(f"{stack.url}{document['links']['mask']}").status_code == 200
        assert document["links"]["mask"].startswith("/ml/jobs/")
        stack.process.send_signal(signal.SIGTERM)
        assert stack.outcome()[0] == 0


def test_webhooks_with_one_command(stack: Serving, receiver: Receiver) -> None:
    form = {"labels": "cat", "callback_url": receiver.url()}
    job = httpx.post(f"{stack.url}/pseudo-mask", files={"image": png()}, data=form).json()
    wait_for(lambda: receiver.deliveries, what="the webhook")
    [delivery] = receiver.deliveries
    assert Webhook(SECRET).verify(delivery.body, delivery.headers)["data"]["id"] == job["id"]


def test_a_second_stack_is_refused_in_one_line(stack: Serving, tmp_path: Path) -> None:
    own = stack.process.pid
    cases = [
        (Serving(stack.data), f"{stack.data} is in use by another semples serve (process {own})"),
        (
            Serving(tmp_path / "other", port=stack.port),
            f"cannot listen on 127.0.0.1 port {stack.port}: Address already in use",
        ),
    ]
    for refused, message in cases:
        code, output, errors = refused.outcome()
        assert (code, output) == (3, "")
        assert errors == f"semples serve: {message}\n"
    assert stack.is_ready()


def test_dead_processes_are_replaced_until_it_stops(stack: Serving) -> None:
    before = stack.worker_pid()
    os.kill(before, signal.SIGKILL)
    [api] = [pid for pid in stack.children() if b"\0-m\0service\0" in cmdline(pid)]
    os.kill(api, signal.SIGKILL)
    # A request meanwhile waits in the listening socket, and is answered.
    assert httpx.get(f"{stack.url}/health", timeout=30).status_code == 200
    [janitor] = [pid for pid in stack.children() if b"\0worker\0janitor\0" in cmdline(pid)]
    os.kill(janitor, signal.SIGTERM)
    wait_for(lambda: not alive({janitor}), what="its end")
    wait_for(lambda: any(b"\0worker\0janitor\0" in cmdline(pid) for pid in stack.children()), what="another janitor")
    wait_for(lambda: stack.is_ready() and stack.worker_pid() not in (0, before), what="a new worker")
    assert post(stack).json()["status"] == "finished"
    output = end_in_order(stack, signal.SIGTERM)
    assert "worker ended (-9)" in output
    assert "api ended (-9)" in output


def test_killed_it_takes_its_children_along_and_the_next_one_goes_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as stack:
        stack.wait_ready()
        job = post(stack).json()["id"]
        children = stack.children()
        stack.end(signal.SIGKILL)
        wait_for(lambda: not alive(children), what="the end of all children")
    with serving(data) as stack:
        stack.wait_ready()
        assert httpx.get(f"{stack.url}/jobs/{job}").json()["status"] == "finished"
        assert httpx.get(f"{stack.url}/jobs/{job}/mask.png").status_code == 200


def test_a_job_in_hand_is_waited_for_until_the_second_signal(tmp_path: Path) -> None:
    settings = _Stack("127.0.0.1", 0, tmp_path, None, ["worker"])
    assert _worker_command(settings, {}).grace > Settings().job_timeout_max
    with serving(tmp_path / "data") as stack:
        stack.wait_ready()
        form: dict[str, Any] = {"files": {"image": png()}, "data": {"labels": "hangs"}}
        job = stack.url + httpx.post(f"{stack.url}/pseudo-mask", **form).headers["Location"]
        wait_for(lambda: httpx.get(job).json()["status"] == "running", what="the job")
        worker = {stack.worker_pid()}
        stack.process.send_signal(signal.SIGTERM)
        api = f"{stack.url}/health"
        wait_for(lambda: not answers(api), what="the API's end")
        time.sleep(SECOND_SIGNAL_SECONDS)
        assert alive(worker) == worker
        code, output, _ = stack.end()
        assert (code, output.splitlines()[-1]) == (0, "semples serve: stopped")
        assert alive(worker) == set()


def test_an_operators_redis_is_used_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with valkey(tmp_path / "redis") as place:
        with serving(tmp_path / "data", REDIS_URL=place.url) as stack:
            stack.wait_ready()
            assert post(stack).json()["status"] == "finished"
            assert not (tmp_path / "data" / "redis").exists()
        assert place.redis.ping()


def test_a_signal_while_starting(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as stack:
        wait_for(stack.children, what="the first child")
        children = stack.children()
        code, output, _ = stack.end()
        assert code == 0
        assert output.endswith("semples serve: stopped\n")
        assert alive(children) == set()


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (("--bundle", "broken"), {}, "worker ended at the start: semples worker: cannot load"),
        ((), {"REDIS_URL": "redis://127.0.0.1:1/0"}, "cannot reach REDIS_URL: Error 111"),
        ((), {"REDIS_URL": "http://x"}, "cannot reach REDIS_URL: "),
        ((), {"SEMPLES_MAX_QUEUE": "many"}, "SEMPLES_MAX_QUEUE: Input should be a valid integer"),
        ((), {"SEMPLES_RATE": "often"}, "api ended at the start: python -m service: expected a rate"),
    ],
)
def test_what_cannot_start_is_one_line_and_stops_the_rest(
    tmp_path: Path, arguments: tuple[str, ...], env: dict[str, str], message: str
) -> None:
    data = tmp_path / "data"
    command = ("tests.helpers.service_stack", str(data), str(free_port()), *arguments)
    refused = Serving(data, *command, **env)
    code, _, errors = refused.outcome()
    assert code == 3
    assert errors.startswith(f"semples serve: {message}")
    assert errors.count("\n") == 1
    assert not redis_server.answers(redis_server.socket_path(data))


def test_a_webhook_secret_that_is_none(tmp_path: Path) -> None:
    """API and janitor both end; which of them is noticed first is chance."""
    code, _, errors = Serving(tmp_path / "data", SEMPLES_WEBHOOK_SECRET="password").outcome()
    assert code == 3
    assert "ended at the start: semples " in errors
    assert "expected as webhook secret whsec_ and the base64 of 24 to 64 bytes, got 8" in errors
    assert "password" not in errors


def test_a_file_as_data_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = Serving(tmp_path / "file")
    code, _, errors = refused.outcome()
    assert code == 3
    assert errors == (f"semples serve: cannot use the data directory {tmp_path / 'file'}: File exists (--data DIR)\n")
