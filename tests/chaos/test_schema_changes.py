"""A schema that changes under workers, is cut off in the middle, or is newer than this program."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenure import Tenure
from tenure.errors import SchemaMismatch
from tenure.failpoints import ENVIRONMENT
from tenure.store import migrate, open_store
from tests.chaos import checker, next_version
from tests.chaos.load import Load
from tests.chaos.next_version import longer
from tests.support import fault_counts
from tests.support.raw_sql import RawSql

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]


def migrator(url: str, version: str = "next", failpoints: str = "") -> subprocess.Popen[str]:
    """A process that brings the schema to this version, or the next one."""
    return subprocess.Popen(
        [sys.executable, "-m", next_version.__name__, url, version],
        cwd=ROOT,
        env={**os.environ, ENVIRONMENT: failpoints},
        stdout=subprocess.PIPE,
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


@pytest.mark.slow
@pytest.mark.scenario(80)
def test_a_migration_is_killed_at_every_step_while_old_workers_go_on(
    database_url: str, raw: RawSql, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = migrate.newest(raw.engine)
    before = shape(raw)
    with Load(database_url, tmp_path / "record") as load:
        for place in ("before_step", "after_step"):
            for visit in (1, 2):
                killed, _ = said(migrator(database_url, "next", f"migrate.{place}=kill@{visit}"))
                assert killed == -9
                fault_counts.count("processes killed")
                assert shape(raw) == before  # nothing half done
                load.flows_again()
        # Killed after its commit it is done, all of it, and the next one finds nothing to do.
        assert said(migrator(database_url, "next", "migrate.after_commit=kill"))[0] == -9
        fault_counts.count("processes killed")
        after = shape(raw)
        assert after != before
        assert said(migrator(database_url)) == (0, str(newest + 2))
        assert shape(raw) == after
        load.flows_again()  # the old workers, over the new schema
    monkeypatch.setattr(migrate, "steps", longer)
    assert checker.check(tmp_path / "record", database_url) == []


@pytest.mark.scenario(81)
def test_of_four_migrators_one_migrates(database_url: str) -> None:
    migrators = [migrator(database_url, "this") for _ in range(4)]
    newest = migrate.newest(engine_of(database_url))
    assert [said(process) for process in migrators] == [(0, str(newest))] * 4
    again = [migrator(database_url, "next") for _ in range(4)]
    assert [said(process) for process in again] == [(0, str(newest + 2))] * 4
    raw = RawSql(database_url)
    table = "tenure_schema" if raw.engine == "sqlite" else "tenure.schema_version"
    versions = [number for number, _ in longer(raw.engine)]
    assert raw.run(f"SELECT version FROM {table} ORDER BY 1") == [(n,) for n in versions]
    raw.close()


@pytest.mark.scenario(82)
def test_a_newer_schema_is_refused_and_nothing_is_touched(database_url: str, raw: RawSql) -> None:
    with Tenure(database_url) as app:
        app.enqueue("mail")
    newest = migrate.newest(raw.engine)
    assert said(migrator(database_url)) == (0, str(newest + 2))
    before = (shape(raw), raw.contents())
    with pytest.raises(SchemaMismatch, match=f"has schema {newest + 2}.* up to {newest}: upgrade"):
        open_store(database_url)
    with pytest.raises(SchemaMismatch):
        Tenure(database_url).enqueue("mail")
    assert (shape(raw), raw.contents()) == before
