"""Producers, workers and servers are killed: a committed row has one job, no job lacks its row."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from tenure import Tenure
from tests.chaos import producing
from tests.support import fault_counts
from tests.support.lenders import POSTGRES, SQLITE
from tests.support.postgres import PostgresServer
from tests.support.postgres_servers import durable_server
from tests.support.programs import Program
from tests.support.raw_sql import RawSql
from tests.support.waiting import wait_until
from tests.support.worker_scripts import WorkerScript

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(1_200)]

KINDS = ["few", pytest.param("any", marks=pytest.mark.full)]
"""Two kinds of connections, or three of all kinds by chance."""

SHIP = """
from tests.support.raw_sql import RawSql


@app.job(max_retries=1000, backoff=0)
def ship(order):
    sql = RawSql(app.database)
    rows = sql.run("SELECT count(*) FROM orders WHERE number = ?", order)
    sql.close()
    log("a row" if rows == [(1,)] else f"no row: {order}")
"""


class Scene:
    """Producers that are killed all the time, and workers for their jobs."""

    def __init__(self, url: str, folder: Path, chance: random.Random) -> None:
        self.url = url
        self.logs: list[Path] = []
        self.producers: list[subprocess.Popen[bytes]] = []
        self._chance = chance
        self._folder = folder
        with Tenure(url) as app:
            app.open()
        sql = RawSql(url)
        sql.run(producing.TABLE)
        sql.close()
        self._script = WorkerScript(folder / "worker", url, SHIP, concurrency=2, lease=3.0)
        self._stack = ExitStack()

    def __enter__(self) -> Scene:
        self._stack.enter_context(self._script)
        self._worker = self._script.start(PYTHONPATH=str(ROOT))
        return self

    def __exit__(self, *_: object) -> None:
        for producer in self.producers:
            if producer.poll() is None:
                os.killpg(producer.pid, signal.SIGKILL)  # its child, too
                producer.wait()
        self._stack.close()

    def produce(self, kind: str, kills: int, way: str = "within") -> None:
        """Start a producer that is killed so often, always to be replaced."""
        log = self._folder / f"{kind}.log"
        seed = str(self._chance.random())
        command = [sys.executable, "-m", producing.__name__, kind, self.url, str(log), seed]
        self.logs.append(log)
        with log.with_suffix(".error").open("wb") as error:
            started = Program(
                [*command, str(kills), way], cwd=ROOT, stderr=error, start_new_session=True
            )
        self.producers.append(started)
        fault_counts.count("processes killed", kills)

    def wait_for_answer(self) -> None:
        """Wait until a producer has had another answer, if any is left."""
        before = self._answers()
        wait_until(
            lambda: (
                self._answers() > before
                or all(producer.poll() is not None for producer in self.producers)
            ),
            "an answer",
        )

    def _answers(self) -> int:
        return sum(log.stat().st_size for log in self.logs if log.exists())

    def kill_worker(self) -> None:
        """Kill the worker while it works; another takes its place."""
        before = len(self._script.lines())
        self._script.wait_for_lines(before + 1)
        self._worker.kill()
        self._worker = self._script.start(PYTHONPATH=str(ROOT))
        fault_counts.count("processes killed")

    def end(self) -> list[str]:
        """Wait for the producers, then for their jobs; what is wrong."""
        for producer, log in zip(self.producers, self.logs, strict=True):
            assert producer.wait() == 0, log.with_suffix(".error").read_text()
        with Tenure(self.url) as app:
            wait_until(
                lambda: {one.status for one in app.stats.counts()} <= {"completed"}, "all to run"
            )
            fault_counts.count("jobs accepted", app.count(at_most=1_000_000).jobs)
        ghosts = [line for line in self._script.lines() if line != "a row"]
        return ghosts + producing.complaints(self.url, self.logs)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with durable_server() as started:
        yield started


def crash(server: PostgresServer, url: str) -> None:
    server.stop("immediate")
    server.start()
    fault_counts.count("database crashes")


def kill_session(server: PostgresServer, url: str) -> None:
    """Kill the process of one session: the server ends all others, and recovers from its log."""
    with psycopg.connect(url) as victim, psycopg.connect(url, autocommit=True) as other:
        os.kill(victim.info.backend_pid, signal.SIGKILL)
        wait_until(lambda: _is_cut(other), "the server to end all sessions")
    wait_until(lambda: _answers(url), "the server to recover")
    fault_counts.count("database crashes")


def _is_cut(connection: psycopg.Connection) -> bool:
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def url(server: PostgresServer, chance: random.Random) -> Iterator[str]:
    if server.pid is None:  # a test before this one has failed
        server.start()
    name = f"orders_{chance.randrange(2**31)}"
    yield server.create_database(name)
    server.drop_database(name)


@pytest.mark.scenario(109)
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.postgres
def test_rows_and_jobs_agree_whoever_is_killed(
    server: PostgresServer, url: str, kinds: str, tmp_path: Path, effort: int, chance: random.Random
) -> None:
    with Scene(url, tmp_path, chance) as scene:
        all_kinds = [kind.name for kind in POSTGRES]
        for kind in ("psycopg", "asyncpg") if kinds == "few" else chance.sample(all_kinds, k=3):
            scene.produce(kind, min(8 * effort, 200))
        for _ in range(effort):
            scene.kill_worker()
            for fault in chance.sample((crash, kill_session), k=2):
                scene.wait_for_answer()
                fault(server, url)
        assert scene.end() == []


@pytest.mark.scenario(109)
@pytest.mark.parametrize("kinds", KINDS)
def test_rows_and_jobs_in_one_file_agree_whoever_is_killed(
    sqlite_url: str, kinds: str, tmp_path: Path, effort: int, chance: random.Random
) -> None:
    with Scene(sqlite_url, tmp_path, chance) as scene:
        all_kinds = [kind.name for kind in SQLITE]
        for kind in ("sqlite3", "aiosqlite") if kinds == "few" else chance.sample(all_kinds, k=3):
            scene.produce(kind, min(8 * effort, 200))
        for _ in range(effort):
            scene.kill_worker()
        assert scene.end() == []


@pytest.mark.scenario(109)
def test_jobs_that_are_added_after_the_commit_are_lost(
    sqlite_url: str, tmp_path: Path, chance: random.Random
) -> None:
    """The control: what the tests above would find, with as many kills."""
    with Scene(sqlite_url, tmp_path, chance) as scene:
        scene.produce("sqlite3", 8, "after")
        found = scene.end()
    assert found
    assert all(complaint.startswith("0 jobs of a row") for complaint in found)
