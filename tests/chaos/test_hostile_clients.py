"""Hostile connections of every kind at once, and honest clients beside them, who notice little.

The machine may be busy. So what /health may take grows as the server waits for a processor: if it
waits as long as it computes, /health may take three times as long, because requests then queue.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest

from tenure import NewJob, Tenure
from tenure.client import Client
from tests.chaos import hostile_process
from tests.chaos.fuzz import memory_mib
from tests.support.cli import PROGRAM, clean_environment
from tests.support.http import ServerProcess
from tests.support.programs import Program
from tests.support.raw_sql import RawSql
from tests.support.waiting import wait_until

TOKEN = "the-token-of-an-honest-client"
HANDLERS = """
import asyncio

from tenure import Tenure

app = Tenure("sqlite:///unused.db")

@app.job
async def work(seconds: float) -> None:
    await asyncio.sleep(seconds)
"""
LEASE_SECONDS = 4
JOB_SECONDS = (0.0, 0.1, 2.5 * LEASE_SECONDS)
"""One job in three lives by its heartbeats."""
JOBS_PER_SECOND = 10
MANY_EVENTS = 10_000
"""In the ledger from the start, for those who ask for events and do not read them."""

QUIET_SECONDS = 10.0
ATTACK_SECONDS = 45.0
"""Clients that do not read are cut off after 30."""
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
HEALTH_SECONDS = 0.1
"""What /health may take at the 99th percentile, where nothing else keeps the server waiting."""
MAX_MEMORY_MIB = 286  # 300 MB


class Producer(threading.Thread):
    """Adds jobs at a steady rate until it is stopped."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.added: list[str] = []
        self.failures: list[Exception] = []
        self._url = url
        self._stopped = threading.Event()

    def __enter__(self) -> Producer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        with Client(self._url, token=TOKEN) as client:
            while not self._stopped.wait(1 / JOBS_PER_SECOND):
                seconds = JOB_SECONDS[len(self.added) % len(JOB_SECONDS)]
                try:
                    self.added.append(client.enqueue("work", {"seconds": seconds}).id)
                except Exception as error:
                    self.failures.append(error)


@contextlib.contextmanager
def worker(server: ServerProcess, folder: Path) -> Iterator[None]:
    """A worker that has nothing but the server."""
    (folder / "honest.py").write_text(HANDLERS)
    options = ["--app", "honest:app", "--lease", f"{LEASE_SECONDS}s", "--concurrency", "100"]
    with (folder / "worker.log").open("wb") as log:
        process = Program(
            [*PROGRAM, "worker", "--server", server.url, *options],
            cwd=folder,
            env=clean_environment(TENURE_TOKEN=TOKEN),
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            process.kill()
            process.wait()
            print((folder / "worker.log").read_text("utf-8")[-2_000:])


@contextlib.contextmanager
def attack(server: ServerProcess, *tokens: str) -> Iterator[subprocess.Popen[str]]:
    """The attack, in a process, until it ends or the block does."""
    module = hostile_process.__name__
    process = Program(
        [sys.executable, "-m", module, str(server.address[1]), str(ATTACK_SECONDS), *tokens],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def health(server: ServerProcess) -> float:
    """How long /health takes on a new connection, in seconds; for ever if it is not answered."""
    began = time.monotonic()
    try:
        with server.connect() as connection:
            connection.sendall(HEALTH)
            answer = connection.recv(64 * 1024)
    except OSError:
        return inf
    return time.monotonic() - began if answer.startswith(b"HTTP/1.1 200 ") else inf


def probed(server: ServerProcess, seconds: float) -> list[float]:
    """How long /health took each time, up to 50 times a second, sorted."""
    took = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        took.append(health(server))
        time.sleep(0.02)
    return sorted(took)


def scheduled(server: ServerProcess) -> tuple[int, int]:
    """How long the event loop's thread has computed, and how long it has waited for a processor."""
    try:
        computed, waited, _ = Path(f"/proc/{server.process.pid}/schedstat").read_text().split()
    except OSError:
        return 1, 0
    return int(computed), int(waited)


def percentile_99(took: list[float]) -> float:
    return took[len(took) * 99 // 100]


@pytest.mark.chaos
@pytest.mark.full
@pytest.mark.slow
@pytest.mark.scenario(98)
@pytest.mark.requirement("C9")
@pytest.mark.timeout(300)
def test_honest_clients_notice_little_of_hostile_ones(sqlite_url: str, tmp_path: Path) -> None:
    with Tenure(sqlite_url) as app, contextlib.closing(RawSql(sqlite_url)) as raw:
        app.enqueue_many([NewJob("later", {}, {"delay": "1d"}) for _ in range(MANY_EVENTS)])
        tokens = [app.tokens.create(scope, [scope])[0] for scope in ("read", "enqueue")]

        def ledger() -> Counter[str]:
            return Counter(dict(raw.run("SELECT event, count(*) FROM {transition} GROUP BY event")))

        with ServerProcess(sqlite_url, TENURE_TOKEN=TOKEN) as server, worker(server, tmp_path):
            with Producer(server.url) as producer:
                quiet = probed(server, QUIET_SECONDS)
                before = scheduled(server)
                with attack(server, *tokens) as attacker:
                    beside = probed(server, ATTACK_SECONDS)
                    counts, _ = attacker.communicate(timeout=60)
                computed, waited = (b - a for a, b in zip(before, scheduled(server), strict=True))
                quiet = sorted(quiet + probed(server, QUIET_SECONDS))
            wait_until(lambda: ledger()["completed"] == len(producer.added), "all jobs to complete")
            memory = memory_mib(server)
            server.stop()
        events, violations = ledger(), app.verify()

    stretched = 1 + 2 * waited / max(computed, 1)  # by other programs, and by the attacker
    limit = HEALTH_SECONDS * stretched
    print(f"/health: p99 {percentile_99(beside):.3f} s of {len(beside)}, worst {beside[-1]:.3f} s")
    print(f"without an attack: p99 {percentile_99(quiet):.3f} s, worst {quiet[-1]:.3f} s")
    print(f"limit {limit:.3f} s; memory {memory} MiB; {dict(events)}; {counts}")
    opened = json.loads(counts)
    for name, kind in hostile_process.kinds("", "").items():
        assert opened[name] >= kind.connections
    assert percentile_99(quiet) < limit
    assert percentile_99(beside) < limit
    assert memory < MAX_MEMORY_MIB
    assert events["lease_expired"] == 0
    assert producer.failures == []
    assert violations == []
