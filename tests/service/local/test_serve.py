"""``semples serve``: everything starts, everything stops, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from service.local.serve import Stack
from service.local.serve import _worker_command as worker_command
from service.local.supervisor import _IMPATIENCE_SECONDS as IMPATIENCE
from service.settings import Settings
from tests.helpers.service_fixtures import png, valkey, wait_for
from tests.helpers.serving import alive, answers, cmdline, post, serving
from tests.helpers.webhook_receiver import SECRET, receiving


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path / "data") as stack:
        stack.wait_ready()
        assert post(stack).json()["status"] == "finished"
        children = stack.children()
        assert len(children) >= 4
        code, output, errors = stack.end(number)
        assert (code, errors) == (0, "")
        assert f"ready: {stack.url}" in output
        assert output.splitlines()[-1] == "semples serve: stopped"
        assert alive(children) == set()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{stack.url}/health")
    assert {path.name for path in (tmp_path / "data" / "logs").iterdir()} == {
        "api.log",
        "janitor.log",
        "redis.log",
        "worker.log",
    }
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


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


def test_a_dead_worker_and_a_dead_api_are_replaced(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as stack:
        stack.wait_ready()
        before = stack.worker_pid()
        os.kill(before, signal.SIGKILL)
        [api] = [pid for pid in stack.children() if b"\0-m\0service\0" in cmdline(pid)]
        os.kill(api, signal.SIGKILL)
        # A request that comes meanwhile waits in the listening socket, and is answered.
        assert httpx.get(f"{stack.url}/health", timeout=30).status_code == 200
        wait_for(
            lambda: stack.is_ready() and stack.worker_pid() not in (0, before), what="a new worker"
        )
        assert post(stack).json()["status"] == "finished"
        code, output, _ = stack.end()
        assert code == 0
        assert "worker ended (-9)" in output
        assert "api ended (-9)" in output


def test_a_job_in_hand_is_waited_for_until_the_second_signal(tmp_path: Path) -> None:
    settings = Stack("127.0.0.1", 0, tmp_path, None, ["worker"])
    assert worker_command(settings, {}).grace > Settings().job_timeout_max
    with serving(tmp_path / "data") as stack:
        stack.wait_ready()
        form: dict[str, Any] = {"files": {"image": png()}, "data": {"labels": "hangs"}}
        job = stack.url + httpx.post(f"{stack.url}/pseudo-mask", **form).headers["Location"]
        wait_for(lambda: httpx.get(job).json()["status"] == "running", what="the job")
        worker = {stack.worker_pid()}
        stack.process.send_signal(signal.SIGTERM)
        api = f"{stack.url}/health"
        wait_for(lambda: not answers(api), what="the API's end")
        time.sleep(IMPATIENCE)
        assert alive(worker) == worker
        code, output, _ = stack.end()
        assert (code, output.splitlines()[-1]) == (0, "semples serve: stopped")
        assert alive(worker) == set()


def test_webhooks_with_one_command(tmp_path: Path) -> None:
    env = {"SEMPLES_WEBHOOK_SECRET": SECRET, "SEMPLES_WEBHOOK_PRIVATE": "1"}
    with receiving() as receiver, serving(tmp_path / "data", **env) as stack:
        stack.wait_ready()
        form = {"labels": "cat", "callback_url": receiver.url()}
        job = httpx.post(f"{stack.url}/pseudo-mask", files={"image": png()}, data=form).json()
        wait_for(lambda: receiver.deliveries, what="the webhook")
        [delivery] = receiver.deliveries
        assert Webhook(SECRET).verify(delivery.body, delivery.headers)["data"]["id"] == job["id"]
        [janitor] = [pid for pid in stack.children() if b"\0worker\0janitor\0" in cmdline(pid)]
        os.kill(janitor, signal.SIGTERM)
        wait_for(lambda: not alive({janitor}), what="its end")
        wait_for(
            lambda: any(b"\0worker\0janitor\0" in cmdline(pid) for pid in stack.children()),
            what="another janitor",
        )


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
