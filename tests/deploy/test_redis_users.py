"""Redis' users as shipped: each program may do all its work, and nothing else."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, ResponseError

from tests.helpers.batches import accepted, ended, many, packed
from tests.helpers.redis_users import DEPLOY, USERS, Deployment, events_of, make_secrets
from tests.helpers.service_fixtures import stop, wait_for
from tests.helpers.webhooks import SECRET, receiving

NOBODYS = """
FLUSHALL | FLUSHDB | SWAPDB 0 1 | SAVE | BGREWRITEAOF | SHUTDOWN NOSAVE | REPLICAOF NO ONE
CONFIG GET * | CONFIG SET maxmemory 1 | MODULE LIST | FUNCTION LIST | SCRIPT FLUSH
KEYS * | SCAN 0 | RANDOMKEY | GET other | SET other 1 | RENAME rq:job:x rq:job:y
ACL LIST | ACL WHOAMI | ACL SETUSER default on nopass +@all
CLIENT LIST | CLIENT KILL TYPE normal | MONITOR | PUBLISH rq:pubsub:w x
EVAL return(redis.call('GET','other')) 0 | EVAL return(redis.call('GET',KEYS[1])) 1 other
EVAL return(redis.call('FLUSHALL')) 0
"""

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
        "GET semples:label-studio:x",
        "LRANGE semples:rate:x 0 -1",
        "SET semples:janitor:h 1",
        "SUBSCRIBE other",
    ),
    "janitor": (
        "SET semples:worker:w 1",
        "SET semples:model:m 1",
        "GET semples:label-studio:x",
        "LRANGE semples:rate:x 0 -1",
        "SUBSCRIBE rq:pubsub:w",
        "BLMOVE rq:queue:semples-m rq:queue:semples-m:intermediate LEFT RIGHT 1",
    ),
    "health": ("GET rq:queues", "INFO", "TIME", "EVAL return(1) 0", "SUBSCRIBE rq:pubsub:w"),
}

REFUSAL = "has no permissions to|No permissions to access|can't run this command|ACL failure in script"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A server, and no program."""
    there = Deployment(tmp_path_factory.mktemp("deployment"))
    there.start()
    yield there
    there.stop()


@pytest.mark.parametrize("user", [*USERS, "health"])
def test_nobody_may_do_more_than_the_programs_do(deployment: Deployment, user: str) -> None:
    with deployment.client(user) as redis:
        assert redis.ping()
        for command in (*re.split(r" \| |\n", NOBODYS.strip()), *OTHERS[user]):
            with pytest.raises(ResponseError, match=REFUSAL):
                redis.execute_command(*command.split(" "))


def test_who_does_not_say_who_he_is_may_do_nothing(deployment: Deployment) -> None:
    with (
        Redis(port=deployment.port) as redis,
        pytest.raises(AuthenticationError, match=r"already authenticated|Authentication required"),
    ):
        redis.ping()
    with (
        Redis(port=deployment.port, username="api", password="guess") as redis,
        pytest.raises(AuthenticationError, match="invalid username-password"),
    ):
        redis.ping()


def test_nobody_reads_a_password_from_the_rules(deployment: Deployment) -> None:
    rules = (deployment.secrets / "redis" / "users.acl").read_text()
    names = re.findall(r"^user (\w+) ", rules, re.M)
    assert names == ["default", "health", *USERS, "operator"]
    assert len(rules.splitlines()) == len(names)
    for user in (*USERS, "operator"):
        password = deployment.url(user).split(":")[2].partition("@")[0]
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
    deployment = Deployment(tmp_path)
    try:
        deployment.start()
        worker = deployment.start_worker()
        deployment.start_janitor(**hooks)
        deployment.start_api(SEMPLES_RATE="1000/minute", SEMPLES_MAX_QUEUE="2", **hooks)
        _whole_life(deployment)
        _batches(deployment)
        _full(deployment)
        _dead_letter(deployment)
        for part in ("worker", "janitor"):
            done = deployment.call(part, "worker", "health", part)
            assert (done.returncode, done.stderr) == (0, "")
        worker = deployment.children["worker"]
        stop(worker)
        assert worker.exit_code == 0
        assert deployment.call("worker", "worker", "health", "worker").returncode == 1
        # Nobody was refused anything, and nobody swallowed it if he was.
        assert deployment.denied() == []
        for name in USERS:
            assert "ermission" not in deployment.log(name)
    finally:
        deployment.stop()


def _whole_life(deployment: Deployment) -> None:
    """Post, wait, look, listen, cancel, remove, get a webhook; everything that a client can do."""
    api = deployment.api
    with receiving() as receiver:
        job = deployment.post("cat", query="?wait=30", callback_url=receiver.url())
        assert job["status"] == "finished"
        wait_for(lambda: receiver.deliveries, what="the webhook")
    assert api.get(f"/jobs/{job['id']}/mask.png").status_code == 200
    assert deployment.post(query="?wait=30")["task"] == "segment"
    assert deployment.post("raises", query="?wait=30")["status"] == "failed"
    assert api.get("/models/double").json()["nearest_nouns"]

    running = deployment.post("slow")
    waiting = deployment.post("cat")
    assert deployment.status(waiting) in ("queued", "running")
    deployment.wait_for_status(running, "running")
    assert 'state="started"} 1.0' in api.get("/metrics").text
    for each in (running, waiting):
        assert api.delete(f"/jobs/{each['id']}").status_code in (200, 202, 204)
    deployment.wait_for_status(running, "canceled")
    assert events_of(api.get(f"/jobs/{running['id']}/events"))[-1] == ("end", {"status": "canceled"})
    first, second = (deployment.post("cat", new=new) for new in (True, False))
    assert first["id"] == second["id"]
    setup = {"project": "1.1", "schema": '<View><Image name="i" value="$image"/></View>'}
    assert api.post("/label-studio/setup", json=setup).status_code < 500

    assert api.delete(f"/jobs/{job['id']}").status_code == 204
    assert api.get(f"/jobs/{job['id']}").status_code == 404
    metrics = api.get("/metrics").text
    assert "semples_redis_up 1.0" in metrics
    assert 'semples_worker_jobs_ended_total{code="",outcome="finished"' in metrics


def _batches(deployment: Deployment) -> None:
    """A zip is worked on, looked at, posted again; another is forgotten while its photos wait."""
    api, archive = deployment.api, packed(many(4) | {"bad.png": b"no picture"})
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


def _full(deployment: Deployment) -> None:
    """A queue's end is reached while its worker is busy."""
    jobs = [deployment.post("slow")]
    deployment.wait_for_status(jobs[0], "running")
    with suppress(httpx.HTTPStatusError):
        for _ in range(20):  # the worker takes some ahead
            jobs.append(deployment.post("slow"))
    assert len(jobs) < 21
    for job in jobs:
        deployment.api.delete(f"/jobs/{job['id']}").raise_for_status()
    for job in jobs:
        deployment.wait_for_status(job, "canceled")


def _dead_letter(deployment: Deployment) -> None:
    """A job takes three workers down, is listed, queued again, and taken back."""
    deadly = deployment.post("kills")

    def buried() -> bool:
        if deployment.children["worker"].exit_code is not None:
            deployment.start_worker()
        return deployment.status(deadly) == "failed"

    wait_for(buried, seconds=60, what="the third death")
    assert deadly["id"] in deployment.call("janitor", "worker", "dead", "list").stdout
    if deployment.children["worker"].exit_code is None:
        stop(deployment.children["worker"])
    done = deployment.call("janitor", "worker", "dead", "requeue", deadly["id"])
    assert done.stdout == f"queued {deadly['id']}\n"
    assert deployment.api.delete(f"/jobs/{deadly['id']}").status_code == 200
    deployment.start_worker()
    wait_for(deployment.is_ready, what="the worker")
    assert deployment.post("cat", query="?wait=30")["status"] == "finished"
