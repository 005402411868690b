"""`tenure move` while workers and producers are at work, killed again and again.

    python -m tests.chaos.moving --jobs 1000000 --kills 10 --engine sqlite

Producers note each job that was acknowledged and how long each call took, workers each attempt that
they began. Movers are killed by `kill -9`, at failpoints and anywhere. In the end workers on the
target run what is left, and `Trial.faults` says what is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tenure import JobContext, NewJob, StoreUnavailable, Tenure
from tenure.errors import StoreMoved
from tests.support.postgres import PostgresServer
from tests.support.raw_sql import RawSql
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
PLACES = ("move.after_begin", "move.before_switch", "move.in_switch", "move.after_switch")
MOVED = 4
"""The exit code of a program that finds that its jobs are elsewhere."""


def handlers(url: str, attempts: Path, seconds: float) -> Tenure:
    """An application whose jobs take so long, and fail at first if their number ends in 7."""
    import asyncio

    app = Tenure(url)
    file = os.open(attempts, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @app.job(backoff=0, max_retries=5)
    async def work(context: JobContext, number: int) -> int:
        os.write(file, f"{context.id} {context.token}\n".encode())
        await asyncio.sleep(seconds)
        if number % 10 == 7 and context.attempt == 1:
            raise ValueError(f"number {number}")
        return number

    return app


def produce(url: str, log: Path) -> None:
    """Enqueue until the jobs are elsewhere; a call without an answer is made again."""
    app, number = Tenure(url), 0
    app.enqueue("work", {"number": number})  # it connects, which says nothing about a move
    with log.open("a", buffering=1) as answers:
        while True:
            number += 1
            key, began = f"{os.getpid()}-{number}", time.monotonic()
            while True:
                try:
                    job = app.enqueue("work", {"number": number}, idempotency_key=key)
                    break
                except StoreUnavailable:
                    time.sleep(0.02)
            answers.write(f"{job.id} {time.monotonic() - began:.3f}\n")
            time.sleep(0.002)


class Trial:
    """One database that is moved, with the processes that use it."""

    def __init__(
        self, folder: Path, source: str, target: str, seconds: float, patience: float
    ) -> None:
        """`seconds`: how long a handler takes; `patience`: how long a process may take to end."""
        self.folder, self.source, self.target = folder, source, target
        self.seconds = seconds
        self._patience = patience
        self._all: list[subprocess.Popen[bytes]] = []

    def fill(self, jobs: int) -> None:
        """Add jobs of which an acknowledgement is on record."""
        with Tenure(self.source) as app, (self.folder / "acknowledged-0").open("a") as answers:
            for first in range(0, jobs, 1_000):
                new = [NewJob("work", {"number": n}, {}) for n in range(first, first + 1_000)]
                answers.writelines(f"{job.id} 0\n" for job in app.enqueue_many(new[: jobs - first]))

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"output-{len(self._all)}").open("w") as output:  # no pipe: none reads
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._all.append(process)
        return process

    def output(self, process: subprocess.Popen[bytes]) -> str:
        """Wait for a process to end, and return what it printed."""
        process.wait(self._patience)
        return (self.folder / f"output-{self._all.index(process)}").read_text()

    def workers(self, url: str, count: int) -> list[subprocess.Popen[bytes]]:
        this = ("-m", "tests.chaos.moving", "work", url, str(self.seconds))
        return [self.start(*this, str(self.folder / f"attempts-{n}")) for n in range(count)]

    def producers(self, count: int) -> list[subprocess.Popen[bytes]]:
        this = ("-m", "tests.chaos.moving", "produce", self.source, "0")
        logs = (str(self.folder / f"acknowledged-{n}") for n in range(1, count + 1))
        return [self.start(*this, log) for log in logs]

    def mover(self, failpoint: str = "") -> subprocess.Popen[bytes]:
        arguments = ("-m", "tenure", "move", self.source, self.target)
        return self.start(*arguments, TENURE_FAILPOINTS=failpoint)

    def move(self, kills: int, seed: int, after_seconds: float) -> str:
        """Move, killed so many times; return what the last mover said."""
        chance = random.Random(seed)
        for number in range(kills):
            last = number - kills + len(PLACES)  # which place at the end, if it is one
            if number == 0 or last > 0:
                mover = self.mover(f"{PLACES[max(last, 0)]}=kill")
            else:
                mover = self.mover(f"move.after_copy=kill@{chance.randrange(1, 40)}")
                after = chance.uniform(0.5, after_seconds)
                try:
                    mover.wait(after)
                except subprocess.TimeoutExpired:
                    mover.kill()
            output = self.output(mover)
            assert mover.returncode in (-signal.SIGKILL, 0), output
            print(f"killed {number + 1}: {output.splitlines()[-1:]}", flush=True)
        mover = self.mover()
        output = self.output(mover)
        assert mover.returncode == 0, output
        return output

    def close(self) -> None:
        for process in self._all:
            if process.poll() is None:
                process.kill()
            process.wait()

    def acknowledged(self) -> dict[str, float]:
        """The jobs that were accepted, and the seconds of each call."""
        files = self.folder.glob("acknowledged-*")
        lines = (line.split() for file in files for line in file.read_text().splitlines())
        return {id: float(seconds) for id, seconds in lines}

    def attempts(self) -> Counter[tuple[str, str]]:
        """How often each claim of each job began: more than once if both databases gave it out."""
        files = self.folder.glob("attempts-*")
        lines = (line.split() for file in files for line in file.read_text().splitlines())
        return Counter((id, token) for id, token in lines)

    def faults(self) -> list[str]:
        """Say what is wrong once all jobs on the target are settled."""
        sql = RawSql(self.target)
        statuses = {str(id): status for id, status in sql.run("SELECT id, status FROM {job}")}
        sql.close()
        lost = self.acknowledged().keys() - statuses.keys()
        found = [f"lost: {id}" for id in sorted(lost)[:5]]
        found += [f"{id} is {at}" for id, at in statuses.items() if at != "completed"][:5]
        twice = [key for key, began in self.attempts().items() if began > 1]
        found += [f"claim {key} began twice" for key in twice[:5]]
        with Tenure(self.target) as app:
            found += [f"{v.job_id}: {v.invariant}: {v.found}" for v in app.verify()]
        return found


def run(folder: Path, source: str, target: str, options: argparse.Namespace) -> list[str]:
    """Try it, and return what was wrong."""
    trial = Trial(folder, source, target, options.seconds, options.patience)
    began = time.monotonic()
    try:
        trial.fill(options.jobs)
        print(f"filled after {time.monotonic() - began:.0f} s", flush=True)
        workers, producers = trial.workers(source, 4), trial.producers(2)
        wait_until(lambda: len(trial.attempts()) > 20, "the workers to work", options.patience)
        print(trial.move(options.kills, options.seed, options.after), flush=True)
        print(f"moved after {time.monotonic() - began:.0f} s", flush=True)
        for process in (*workers, *producers):
            output = trial.output(process)
            assert process.returncode == MOVED, output
            assert "the jobs were moved to postgresql://" in output, output
        calls = trial.acknowledged()
        print(
            f"{len(calls)} acknowledged, the longest call {max(calls.values()):.2f} s", flush=True
        )
        trial.seconds = 0.0
        trial.workers(target, 4)
        with Tenure(target) as app:
            wait_until(lambda: _open(app) == 0, "all to settle", options.patience)
        print(f"settled after {time.monotonic() - began:.0f} s", flush=True)
        return trial.faults()
    finally:
        trial.close()


def _open(app: Tenure) -> int:
    while app.core.measure():
        pass
    return sum(
        c.jobs for c in app.stats.counts() if c.status in ("pending", "processing", "waiting")
    )


def main() -> None:
    if sys.argv[1:2] == ["work"]:
        _, _, url, seconds, log = sys.argv
        try:
            handlers(url, Path(log), float(seconds)).run_worker(concurrency=8, lease=5)
        except StoreMoved as error:
            print(error)
            raise SystemExit(MOVED) from None
        return
    if sys.argv[1:2] == ["produce"]:
        try:
            produce(sys.argv[2], Path(sys.argv[4]))
        except StoreMoved as error:
            print(error)
            raise SystemExit(MOVED) from None
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--after", type=float, default=20, help="the longest time until a kill")
    parser.add_argument("--seconds", type=float, default=0.05, help="that each handler takes")
    parser.add_argument("--patience", type=float, default=3_600)
    parser.add_argument("--engine", choices=("sqlite", "postgres"), default="sqlite")
    options = parser.parse_args()
    with PostgresServer(durable=True) as server, tempfile.TemporaryDirectory() as folder:
        on_sqlite = options.engine == "sqlite"
        source = f"sqlite:///{folder}/a.db" if on_sqlite else server.create_database("source")
        faults = run(Path(folder), source, server.create_database("target"), options)
    print("\n".join(faults) or "no faults")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
