"""The shipped rights of Redis's users are enough for what the programs do, and for nothing else."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, ResponseError

from tests.batch_zips import accepted, ended, many, packed
from tests.redis_users import DEPLOY, USERS, Fortress, events_of, make_secrets
from tests.service_fixtures import wait_for
from tests.webhook_receiver import SECRET, receiving

NOBODYS = (
    "FLUSHALL",
    "FLUSHDB",
    "CONFIG GET *",
    "CONFIG SET maxmemory 1",
    "KEYS *",
    "SCAN 0",
    "RANDOMKEY",
    "ACL LIST",
    "ACL WHOAMI",
    "ACL SETUSER default on nopass +@all",
    "CLIENT LIST",
    "CLIENT KILL TYPE normal",
    "MONITOR",
    "SAVE",
    "BGREWRITEAOF",
    "SHUTDOWN NOSAVE",
    "REPLICAOF NO ONE",
    "MODULE LIST",
    "FUNCTION LIST",
    "SCRIPT FLUSH",
    "PUBLISH rq:pubsub:w x",
    "SWAPDB 0 1",
    "RENAME rq:job:x rq:job:y",
    "GET other",
    "SET other 1",
    "EVAL return(redis.call('GET','other')) 0",
    "EVAL return(redis.call('GET',KEYS[1])) 1 other",
    "EVAL return(redis.call('FLUSHALL')) 0",
)
OTHERS = {
    "api": (
        "SUBSCRIBE rq:pubsub:w",
        "BLMOVE rq:queue:semples-m rq:queue:semples-m:intermediate LEFT RIGHT 1",
        "HGETALL rq:worker:w",
        "SET rq:worker:w 1",
        "LRANGE rq:queue:others 0 -1",
        "SADD rq:workers w",
    ),
    "worker": (
        "GET semples:callback:x",
        "ZADD semples:callbacks 1 x",
        "GET semples:idempotency:x",
        "LRANGE semples:rate:x 0 -1",
        "SET semples:janitor:h 1",
        "SUBSCRIBE other",
    ),
    "janitor": (
        "SET semples:worker:w 1",
        "SET semples:model:m 1",
        "GET semples:idempotency:x",
        "LRANGE semples:rate:x 0 -1",
        "SUBSCRIBE rq:pubsub:w",
        "BLMOVE rq:queue:semples-m rq:queue:semples-m:intermediate LEFT RIGHT 1",
    ),
    "health": ("GET rq:queues", "INFO", "TIME", "EVAL return(1) 0", "SUBSCRIBE rq:pubsub:w"),
}

REFUSAL = (
    "has no permissions to|No permissions to access|can't run this command|ACL failure in script"
)


@pytest.fixture(scope="module")
def fortress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fortress]:
    """A server, and no program."""
    there = Fortress(tmp_path_factory.mktemp("fortress"))
    there.start()
    yield there
    there.stop()


@pytest.mark.parametrize("user", [*USERS, "health"])
def test_nobody_may_do_more_than_the_programs_do(fortress: Fortress, user: str) -> None:
    with fortress.client(user) as redis:
        assert redis.ping()
        for command in (*NOBODYS, *OTHERS[user]):
            with pytest.raises(ResponseError, match=REFUSAL):
                redis.execute_command(*command.split(" "))


def test_who_does_not_say_who_he_is_may_do_nothing(fortress: Fortress) -> None:
    with (
        Redis(port=fortress.port) as redis,
        pytest.raises(AuthenticationError, match=r"already authenticated|Authentication required"),
    ):
        redis.ping()
    with (
        Redis(port=fortress.port, username="api", password="guess") as redis,
        pytest.raises(AuthenticationError, match="invalid username-password"),
    ):
        redis.ping()


def test_nobody_reads_a_password_from_the_rules(fortress: Fortress) -> None:
    rules = (fortress.secrets / "redis" / "users.acl").read_text()
    names = re.findall(r"^user (\w+) ", rules, re.M)
    assert names == ["default", "health", *USERS, "operator"]
    assert len(rules.splitlines()) == len(names)
    for user in (*USERS, "operator"):
        password = fortress.url(user).split(":")[2].partition("@")[0]
        assert re.fullmatch("[0-9a-f]{64}", password)
        assert password not in rules
    assert "+@all" not in re.sub(r"^user operator .*$", "", rules, flags=re.M)


def test_passwords_stay_and_rules_are_renewed(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    files = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert len(set(files.values())) == len(files) == 5
    rules = tmp_path / "redis" / "users.acl"
    rules.write_text("user default on nopass ~* &* +@all\n")
    make_secrets(tmp_path)
    assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == files
    (tmp_path / "api" / "redis-url").write_text("")  # as a full disk leaves it
    make_secrets(tmp_path)
    assert (tmp_path / "api" / "redis-url").read_text() not in ("", *files.values())
    assert rules.read_text() != files[rules]


def test_a_secret_that_is_not_there_ends_the_container(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", str(DEPLOY / "from-files"), "echo", "started"],
        env={"PATH": "/usr/bin:/bin", "REDIS_URL_FILE": str(tmp_path / "none")},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert (done.stdout, "No such file" in done.stderr) == ("", True)


def test_the_programs_do_all_their_work_with_their_rights(tmp_path: Path) -> None:
    hooks = {"SEMPLES_WEBHOOK_SECRET": SECRET, "SEMPLES_WEBHOOK_PRIVATE": "1"}
    fortress = Fortress(tmp_path)
    try:
        fortress.start()
        worker = fortress.start_worker()
        fortress.start_janitor(**hooks)
        fortress.start_api(SEMPLES_RATE="1000/minute", SEMPLES_MAX_QUEUE="2", **hooks)
        _whole_life(fortress)
        _batches(fortress)
        _full(fortress)
        _dead_letter(fortress)
        for part in ("worker", "janitor"):
            done = fortress.call(part, "worker.health", part)
            assert (done.returncode, done.stderr) == (0, "")
        worker = fortress.children["worker"]
        worker.ask_to_stop()
        worker.wait()
        assert worker.exit_code == 0
        assert fortress.call("worker", "worker.health", "worker").returncode == 1
        # Nobody was refused anything, and nobody swallowed it if he was.
        assert fortress.denied() == []
        for name in USERS:
            assert "ermission" not in fortress.log(name)
    finally:
        fortress.stop()


def _whole_life(fortress: Fortress) -> None:
    """Post, wait, look, listen, cancel, remove, be told; everything that a client can do."""
    api = fortress.api
    with receiving() as receiver:
        job = fortress.post("cat", query="?wait=30", callback_url=receiver.url())
        assert job["status"] == "finished"
        wait_for(lambda: receiver.deliveries, what="the webhook")
    assert api.get(f"/jobs/{job['id']}/mask.png").status_code == 200
    assert fortress.post(query="?wait=30")["task"] == "segment"
    assert fortress.post("raises", query="?wait=30")["status"] == "failed"
    assert api.get("/models/double").json()["nearest_nouns"]

    running = fortress.post("slow")
    waiting = fortress.post("cat")
    assert fortress.status(waiting) in ("queued", "running")
    fortress.wait_for_status(running, "running")
    assert 'state="started"} 1.0' in api.get("/metrics").text
    for each in (running, waiting):
        assert api.delete(f"/jobs/{each['id']}").status_code in (200, 202, 204)
    fortress.wait_for_status(running, "canceled")
    assert events_of(api.get(f"/jobs/{running['id']}/events"))[-1] == (
        "end",
        {"status": "canceled"},
    )
    first, second = (fortress.post("cat", token="k") for _ in range(2))
    assert first["id"] == second["id"]
    setup = {"project": "1.1", "schema": '<View><Image name="i" value="$image"/></View>'}
    assert api.post("/label-studio/setup", json=setup).status_code < 500

    assert api.delete(f"/jobs/{job['id']}").status_code == 204
    assert api.get(f"/jobs/{job['id']}").status_code == 404
    metrics = api.get("/metrics").text
    assert "semples_redis_up 1.0" in metrics
    assert 'semples_worker_jobs_ended_total{code="",outcome="finished"' in metrics


def _batches(fortress: Fortress) -> None:
    """A zip is worked on, looked at, posted again; another is forgotten while its photos wait."""
    api, archive = fortress.api, packed(many(4) | {"bad.png": b"no picture"})
    path = accepted(api, archive)
    assert ended(api, path)["counts"]["finished"] == 4
    assert events_of(api.get(f"{path}/events"))[-1][0] == "end"
    assert api.get(f"{path}/items", params={"status": "failed"}).json()["items"]
    assert api.get(f"{path}/report").status_code == 200
    assert api.get(f"{path}/archive.zip", params={"format": "voc"}).status_code == 200
    assert accepted(api, archive) == path
    assert ended(api, path)["status"] == "finished"
    slow = accepted(api, packed(many(6, "slow")))
    wait_for(lambda: api.get(slow).json()["counts"]["queued"] > 0, what="a photo in the queue")
    for each in (slow, path):
        assert api.delete(each).status_code in (200, 204)
    assert "semples_batches" in api.get("/metrics").text


def _full(fortress: Fortress) -> None:
    """A queue's end is reached while its worker is busy."""
    jobs = [fortress.post("slow")]
    fortress.wait_for_status(jobs[0], "running")
    with suppress(httpx.HTTPStatusError):
        for _ in range(20):  # the worker takes some ahead
            jobs.append(fortress.post("slow"))
    assert len(jobs) < 21
    for job in jobs:
        fortress.api.delete(f"/jobs/{job['id']}").raise_for_status()
    for job in jobs:
        fortress.wait_for_status(job, "canceled")


def _dead_letter(fortress: Fortress) -> None:
    """A job takes three workers down, is listed, queued again, and taken back."""
    deadly = fortress.post("kills")

    def buried() -> bool:
        if fortress.children["worker"].exit_code is not None:
            fortress.start_worker()
        return fortress.status(deadly) == "failed"

    wait_for(buried, seconds=60, what="the third death")
    assert deadly["id"] in fortress.call("janitor", "worker.dead", "list").stdout
    if fortress.children["worker"].exit_code is None:
        fortress.children["worker"].ask_to_stop()
        fortress.children["worker"].wait()
    done = fortress.call("janitor", "worker.dead", "requeue", deadly["id"])
    assert done.stdout == f"queued {deadly['id']}\n"
    assert fortress.api.delete(f"/jobs/{deadly['id']}").status_code == 200
    fortress.start_worker()
    wait_for(fortress.is_ready, what="the worker")
    assert fortress.post("cat", query="?wait=30")["status"] == "finished"
