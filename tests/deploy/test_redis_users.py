"""The shipped rights of Redis's users are enough for nothing but what the programs do, and told to nobody."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, ResponseError

from tests.helpers.redis_users import DEPLOY, USERS, Fortress, make_secrets

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
