"""Which schemas a program opens, upgrades or refuses, and the SQL that a DBA can run instead."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tenure import Tenure
from tenure.errors import InvalidInput, SchemaMismatch
from tenure.settings import Settings
from tenure.store import migrate
from tenure.values.findings import CheckResult
from tenure.worker.process import run_worker
from tests.support.cli import output_of, run_cli
from tests.support.next_version import later
from tests.support.postgres import find_programs
from tests.support.raw_sql import RawSql

NAMES = ("TENURE_DATABASE", "TENURE_MIGRATE", "TENURE_CONFIG")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def older(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a database with one job, of the version before the one that runs here."""
    with Tenure(database_url) as app:
        app.enqueue("mail")
    monkeypatch.setattr(migrate, "steps", later)
    return database_url


def versions(url: str) -> list[int]:
    raw = RawSql(url)
    table = "tenure_schema" if raw.engine == "sqlite" else "tenure.schema_version"
    found = [version for (version,) in raw.run(f"SELECT version FROM {table} ORDER BY 1")]
    raw.close()
    return found


def check_of(url: str) -> Any:
    (found,) = [check for check in Tenure(url).check() if check.name == "schema"]
    return found


def test_an_older_schema_is_upgraded_by_migrate_alone(older: str) -> None:
    for command in (["stats"], ["verify"], ["enqueue", "mail"], ["serve", "--port", "0"]):
        result = run_cli(*command, "--database", older)
        assert result.exit_code == 4
        assert "has schema 1, this Tenure works with 2 and 3: run `tenure migrate`" in result.stderr
    with pytest.raises(SchemaMismatch, match="works with 2 and 3"):
        Tenure(older).enqueue("mail")
    with pytest.raises(SchemaMismatch, match="works with 2 and 3"):
        run_worker(Tenure(older), Settings())
    check = check_of(older)
    assert (check.health, check.found) == (CheckResult.PROBLEM, "1")
    assert "`tenure migrate`" in check.advice
    assert versions(older) == [1]
    assert output_of("migrate", "--database", older) == "schema 2 (was 1)"
    with Tenure(older) as app:
        app.enqueue("mail")
        assert app.verify() == []
    assert check_of(older).health is CheckResult.OK


@pytest.mark.parametrize("by", ["argument", "variable", "command", "file", "worker"])
def test_an_application_may_ask_to_upgrade_when_it_opens(
    older: str, by: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "tenure.toml"
    file.write_text('migrate = "auto"\n')
    if by == "variable":
        monkeypatch.setenv("TENURE_MIGRATE", "auto")
    if by in ("argument", "variable"):
        with Tenure(older, migrate="auto" if by == "argument" else None) as app:
            assert app.verify() == []
    elif by == "worker":
        command = ["worker", "--fake-handlers", "--max-idle", "0.1", "--config", str(file)]
        assert run_cli(*command, "--database", older).exit_code == 0
    else:
        given = {"TENURE_CONFIG": str(file)} if by == "file" else {"TENURE_MIGRATE": "auto"}
        assert "mail" in output_of("stats", "--database", older, **given)
    assert versions(older) == [1, 2]


def test_a_schema_that_is_one_newer_is_used_and_left_alone(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(migrate, "steps", later)
        Tenure(database_url).migrate()
    caplog.set_level(logging.INFO, logger="tenure.store.migrate")
    for how in ("new", "auto"):
        with Tenure(database_url, migrate=how) as app:
            app.enqueue("mail")
            assert app.verify() == []
    lines = [record.getMessage() for record in caplog.records]
    assert ["has schema 2, this Tenure works with 1 and 2" in line for line in lines] == [
        True,
        True,
    ]
    check = check_of(database_url)
    assert (check.health, check.found) == (CheckResult.OK, "2, one newer than 1 of this Tenure")
    assert output_of("migrate", "--database", database_url) == "schema 2 (as it was)"
    assert versions(database_url) == [1, 2]


@pytest.mark.parametrize("value", ["", "always", "AUTO"])
def test_another_way_to_migrate_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if value:
        with pytest.raises(InvalidInput, match=r"\$\.migrate: choose one of new, auto, never"):
            Tenure(migrate=value)
    monkeypatch.setenv("TENURE_MIGRATE", value)
    with pytest.raises(InvalidInput, match="TENURE_MIGRATE: choose one of new, auto, never"):
        Tenure()


# --- the SQL --------------------------------------------------------------------------------------


@pytest.fixture
def other_url(database_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a second empty database of the same engine."""
    if database_url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path}/other.db"
        return
    server = request.getfixturevalue("postgres_server")
    yield server.create_database("tenure_test_other")
    server.drop_database("tenure_test_other")


def run(url: str, script: str) -> None:
    """Run a script as a DBA would, with the program of PostgreSQL."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        connection.executescript(script)
        connection.close()
        return
    command = [program("psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", url]
    ended = subprocess.run(command, check=False, input=script, text=True, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def program(name: str) -> str:
    found = find_programs()
    path = shutil.which(name, path=str(found)) if found else None
    return path or pytest.skip(f"there is no {name} here")


def schema(url: str, name: str = "tenure") -> str:
    """Everything that the schema consists of."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            rows = connection.execute("SELECT sql FROM sqlite_schema ORDER BY type, name")
            return "\n".join(str(sql).strip() for (sql,) in rows)
    command = [program("pg_dump"), "--schema-only", f"--schema={name}", url]
    dump = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    return "\n".join(line for line in dump.splitlines() if "restrict" not in line)


@pytest.mark.each_engine
def test_the_sql_for_a_new_database_makes_what_migrate_makes(
    database_url: str, other_url: str
) -> None:
    engine = "sqlite" if database_url.startswith("sqlite") else "postgres"
    Tenure(database_url).migrate()
    script = output_of("migrate", "--sql", "--database", other_url)
    assert output_of("migrate", "--engine", engine, "--database", "postgresql://?port=1") == script
    assert output_of("migrate", "--engine", engine, "--database", "sqlite:////no/x.db") == script

    run(other_url, script)

    assert schema(other_url) == schema(database_url)
    with Tenure(other_url) as app:
        app.enqueue("mail")
        assert app.verify() == []
        known = {"fsync", "full_page_writes"}  # which the tests' own server does without
        problems = {c.name for c in app.check() if c.health is CheckResult.PROBLEM}
        assert problems <= known
    nothing = output_of("migrate", "--sql", "--database", other_url)
    assert nothing == "-- schema 1: nothing to do"


def test_the_sql_for_an_older_database_upgrades_it(
    older: str, other_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tenure(other_url).migrate()
    script = output_of("migrate", "--sql", "--database", older)
    assert versions(older) == [1]

    run(older, script)

    assert versions(older) == [1, 2]
    with Tenure(older) as app:
        app.enqueue("mail")
        assert app.verify() == []
    monkeypatch.setattr(migrate, "steps", partial(later, versions=0))
    assert run_cli("migrate", "--sql", "--database", older).exit_code == 0


def test_the_sql_names_the_schema_of_the_url(postgres_url: str) -> None:
    url = f"{postgres_url}{'&' if '?' in postgres_url else '?'}schema=jobs_2"
    run(postgres_url, output_of("migrate", "--engine", "postgres", "--database", url))
    with Tenure(url) as app:
        app.enqueue("mail")
        assert app.verify() == []
