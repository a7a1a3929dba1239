"""Many jobs while parts of the stack are killed at random: what was accepted comes to its end, once, and as it should.

    python -m benchmarks.chaos --jobs 1000 --seed 0

Runs an embedded Valkey with its append-only file and two workers of the tests' misbehaving predictor, whose lease is
three seconds. Jobs are posted all the time; some are poisoned, slow, too large for company, or canceled. Every few
seconds a worker or Valkey is killed with SIGKILL, or a worker is asked to stop; Valkey stays away for a moment, now and
then for 25 seconds. Prints a summary. Exit code 1 if something was lost, done twice or left behind.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Annotated

import typer
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from service.jobs.service import JobService
from tests.helpers.chaos import LABELS, TERMINAL, Scene, scene
from tests.helpers.service_fixtures import WorkerProcess
from tests.helpers.undisturbed import SIZES, Asked
from worker.queue.rq import open_redis

ODD = {"raises": 10, "huge": 10, "wide": 40, "slow": 30, "kills": 2, "breaks": 1}
"""Of a thousand jobs, how many are of which kind."""
CANCELED = 0.1
PAUSE_SECONDS = (4.0, 8.0)
AWAY_SECONDS = (0.0, 1.0, 3.0)
LONG_AWAY_SECONDS = 25.0


class Client(threading.Thread):
    """Posts jobs and cancels some, whatever happens to the server meanwhile.

    Args:
        there: where to; what was accepted is noted there.
        count: of jobs.
        seconds: over which they are spread.
        seed: of the choices.
    """

    def __init__(self, there: Scene, *, count: int, seconds: float, seed: int) -> None:
        super().__init__(name="client", daemon=True)
        self._there = there
        self._count = count
        self._pause = seconds / count
        self._random = Random(seed)
        redis = open_redis(there.place.url)
        self._jobs = JobService(redis, there.place.blobs, there.jobs().limits)
        self.accepted: dict[str, Asked] = {}

    def run(self) -> None:
        """Post all; see threading.Thread."""
        kinds = [kind for kind, share in ODD.items() for _ in range(share)]
        for number in range(self._count):
            odd = (self._random.choice(kinds),) if self._random.random() < len(kinds) / 1000 else ()
            labels = (*self._random.choice(LABELS), *odd)
            self._post(number, Asked(labels, self._random.choice(SIZES)))
            if self.accepted and self._random.random() < CANCELED:
                with suppress(RedisError):
                    self._jobs.cancel(self._jobs.find(self._random.choice(list(self.accepted)[-10:])))
            time.sleep(self._pause)

    def _post(self, number: int, asked: Asked) -> None:
        """Post until it is accepted: the answer decides, so a job may be there before."""
        while True:
            try:
                job = self._jobs.submit(*asked.request(number), pixels=asked.size[0] * asked.size[1])
            except RedisError:
                time.sleep(0.2)
            else:
                self.accepted[job.id] = asked
                return


def storm(there: Scene, client: Client, *, random: Random, seconds: float) -> Counter[str]:
    """Kill one thing after the other until the client has posted all; return what was done how often."""
    done: Counter[str] = Counter()
    end = time.monotonic() + seconds
    workers = [there.worker(), there.worker()]
    client.start()
    while client.is_alive() and time.monotonic() < end:
        time.sleep(random.uniform(*PAUSE_SECONDS))
        what = random.choice(("worker", "worker", "valkey", "both", "stop"))
        _strike(what, there, workers, random=random, done=done)
        for worker in workers:
            done["restarts"] += _restart(worker)
    client.join(timeout=60)
    there.accepted.update(client.accepted)
    return done


def _strike(what: str, there: Scene, workers: list[WorkerProcess], *, random: Random, done: Counter[str]) -> None:
    victim = random.choice(workers).child
    if what in ("worker", "both") and victim is not None and victim.exit_code is None:
        victim.kill()
        done["kills of workers"] += 1
    if what == "stop" and victim is not None:
        victim.ask_to_stop()
        done["workers asked to stop"] += 1
        victim.wait()
    if what in ("valkey", "both"):
        there.server.kill()
        done["kills of Valkey"] += 1
        long = done["kills of Valkey"] % 5 == 3
        time.sleep(LONG_AWAY_SECONDS if long else random.choice(AWAY_SECONDS))
        there.server.start()


def _restart(worker: WorkerProcess) -> int:
    """Start a worker that is gone; return whether it was."""
    gone = worker.child is None or worker.child.exit_code is not None
    if gone:
        worker.start(ready=False)  # a poisoned job may end it before it says that it is there
    return int(gone)


def main(
    jobs: Annotated[int, typer.Option(min=1, help="How many to post.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of what is done when.")] = 0,
    seconds: Annotated[float, typer.Option(help="Over which the jobs are posted.")] = 240.0,
    limit: Annotated[float, typer.Option(help="Most seconds for all.")] = 900.0,
) -> None:
    """Run the storm, wait for calm, and say what became of all jobs."""
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="semples-chaos-") as folder,
        scene(Path(folder)) as there,
    ):
        client = Client(there, count=jobs, seconds=seconds, seed=seed)
        done = storm(there, client, random=Random(seed), seconds=limit / 2)

        def restart() -> None:
            for worker in there.workers:
                done["restarts"] += _restart(worker)

        try:
            there.wait_all(seconds=limit / 2, meanwhile=restart)
            problems = there.problems()
        except TimeoutError as error:
            problems = [str(error)]
        took = time.monotonic() - started
        problems += [] if len(there.accepted) == jobs else [f"accepted {len(there.accepted)}"]
        _show(summary(there, done) | {"seed": str(seed), "seconds": f"{took:.0f}"})
    for problem in problems:
        print(problem)
    raise typer.Exit(1 if problems else 0)


def summary(there: Scene, done: Counter[str]) -> dict[str, str]:
    """Return the figures of a run, each with its name."""
    states = there.states()
    lost = Counter(there.attempts_lost(each) for each in there.accepted if there.job(each))
    codes: Counter[str] = Counter()
    for job_id, asked in there.accepted.items():
        failure = there.job(job_id).meta.get("failure") if there.job(job_id) else None
        if failure is not None:
            guilty = set(asked.labels) & set(ODD)
            codes[f"{failure['code']} ({'poisoned' if guilty else 'innocent'})"] += 1
    rows = {"jobs accepted": len(there.accepted), **dict.fromkeys(TERMINAL, 0), **states, **done}
    return {
        **{name: str(count) for name, count in rows.items()},
        "failed, by code": ", ".join(f"{code} {n}" for code, n in sorted(codes.items())),
        "jobs that ran more than once": str(sum(n for count, n in lost.items() if count)),
        "results waiting for the sweep": str(len(there.unowned())),
        "half-written files": str(len(there.unfinished_files())),
    }


def _show(rows: dict[str, str]) -> None:
    table = Table("what", "how many")
    for row in rows.items():
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
