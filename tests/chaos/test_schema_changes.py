"""A schema that changes under workers, is cut off in the middle, or is newer than this program."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tenure import Tenure
from tenure.errors import SchemaMismatch
from tenure.failpoints import ENVIRONMENT
from tenure.store import migrate, open_store
from tests.chaos import checker
from tests.chaos.load import Load
from tests.support import fault_counts, next_version
from tests.support.next_version import later
from tests.support.programs import Program
from tests.support.raw_sql import RawSql
from tests.support.waiting import WAIT_SECONDS, wait_until

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]


def program(version: int, *arguments: str, failpoints: str = "") -> subprocess.Popen[str]:
    """A process that is so many versions later than this one."""
    return Program(
        [sys.executable, "-m", next_version.__name__, str(version), *arguments],
        cwd=ROOT,
        env={**os.environ, ENVIRONMENT: failpoints},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and what was printed, once the process has ended."""
    output, _ = process.communicate(timeout=60)
    return process.returncode, output.strip()


def engine_of(url: str) -> str:
    return "sqlite" if url.startswith("sqlite") else "postgres"


@pytest.fixture
def raw(database_url: str) -> Iterator[RawSql]:
    Tenure(database_url).migrate()
    found = RawSql(database_url)
    yield found
    found.close()


def shape(raw: RawSql) -> list[tuple[object, ...]]:
    """Every table and column there is."""
    if raw.engine == "sqlite":
        return raw.run("SELECT type, name, sql FROM sqlite_schema ORDER BY name")
    return raw.run(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = 'tenure' ORDER BY 1, 2"
    )


@contextlib.contextmanager
def worker(version: int, url: str, queue: str, other: str) -> Iterator[list[str]]:
    """Run a worker of a version in the block, which gets the lines of its log at the end."""
    process = program(version, "work", url, queue, other)
    log: list[str] = []
    try:
        yield log
        process.terminate()
        log += process.communicate(timeout=WAIT_SECONDS)[1].splitlines()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, log


@pytest.mark.slow
@pytest.mark.scenario(80)
@pytest.mark.each_engine
def test_a_migration_is_killed_at_every_step_while_old_workers_go_on(
    database_url: str, raw: RawSql, tmp_path: Path
) -> None:
    newest = migrate.newest(raw.engine)
    before = shape(raw)
    with Load(database_url, tmp_path / "record") as load:
        for place in ("before_step", "after_step"):
            for visit in (1, 2):
                kill = f"migrate.{place}=kill@{visit}"
                killed, told = said(program(2, "migrate", database_url, failpoints=kill))
                assert killed == -9, told
                fault_counts.count("processes killed")
                assert shape(raw) == before  # nothing half done
                load.flows_again()
        # Killed after its commit it is done, all of it, and the next one finds nothing to do.
        kill = "migrate.after_commit=kill"
        assert said(program(1, "migrate", database_url, failpoints=kill))[0] == -9
        fault_counts.count("processes killed")
        after = shape(raw)
        assert after != before
        assert said(program(1, "migrate", database_url)) == (0, str(newest + 1))
        assert shape(raw) == after
        load.flows_again()  # the old workers, over the new schema
    assert checker.check(tmp_path / "record", database_url) == []


@pytest.mark.scenario(81)
@pytest.mark.each_engine
def test_of_four_migrators_one_migrates(database_url: str) -> None:
    newest = migrate.newest(engine_of(database_url))
    for version in (0, 2):
        migrators = [program(version, "migrate", database_url) for _ in range(4)]
        assert [said(process) for process in migrators] == [(0, str(newest + version))] * 4
    raw = RawSql(database_url)
    table = "tenure_schema" if raw.engine == "sqlite" else "tenure.schema_version"
    versions = [number for number, _ in later(raw.engine, 2)]
    assert raw.run(f"SELECT version FROM {table} ORDER BY 1") == [(n,) for n in versions]
    raw.close()


@pytest.mark.scenario(82)
def test_a_newer_schema_is_refused_and_nothing_is_touched(database_url: str, raw: RawSql) -> None:
    with Tenure(database_url) as app:
        app.enqueue("mail")
    newest = migrate.newest(raw.engine)
    assert said(program(2, "migrate", database_url)) == (0, str(newest + 2))
    before = (shape(raw), raw.contents())
    with pytest.raises(SchemaMismatch, match=f"has schema {newest + 2}, .*: upgrade Tenure here"):
        open_store(database_url)
    for how in ("new", "auto"):
        with pytest.raises(SchemaMismatch):
            Tenure(database_url, migrate=how).enqueue("mail")
    assert (shape(raw), raw.contents()) == before


@pytest.mark.scenario(82)
def test_two_versions_work_side_by_side_on_the_newer_schema(
    database_url: str, raw: RawSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_turns(app: Tenure, hops: int) -> None:
        before = app.count(status="completed").jobs
        app.enqueue("hop", {"left": hops - 1}, queue="old", max_retries=2, backoff=0)
        done = partial(app.count, status="completed")
        wait_until(lambda: done().jobs == before + hops, "both workers to take turns")

    newest = migrate.newest(raw.engine)
    with Tenure(database_url) as app:
        with worker(0, database_url, "old", "old") as started_before:
            take_turns(app, 3)
            assert said(program(1, "migrate", database_url)) == (0, str(newest + 1))
            take_turns(app, 3)
        later_job = app.enqueue("hop", {"left": 0}, queue="old", max_retries=2, delay="1h")
        raw.run(f"UPDATE {{job}} SET extra_{newest + 1} = 'kept' WHERE id = ?", later_job.id)
        with (
            worker(0, database_url, "old", "new") as started_after,
            worker(1, database_url, "new", "old") as next_one,
        ):
            take_turns(app, 20)
            raw.run("UPDATE {job} SET run_at = {now} WHERE id = ?", later_job.id)
            wait_until(lambda: app.get(later_job.id).status == "completed", "a row of the next one")
        assert raw.value(f"SELECT extra_{newest + 1} FROM {{job}} WHERE id = ?", later_job.id)
        assert app.verify() == []
        assert app.count(status="completed").jobs == 27
    logs = (started_before, started_after, next_one)
    assert [sum("this Tenure works with" in line for line in log) for log in logs] == [0, 1, 0]
    monkeypatch.setattr(migrate, "steps", later)
    with Tenure(database_url) as app:
        assert app.verify() == []
