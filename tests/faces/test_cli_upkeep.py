"""verify, doctor and migrate."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import tenure
from tenure import Tenure
from tenure.rules.explain import WORKER_IS_LIVE
from tenure.rules.reports import ClaimRequest
from tests.support.cli import PROGRAM, clean_environment, cli_json, output_of, run_cli
from tests.support.programs import Program
from tests.support.raw_sql import RawSql
from tests.support.waiting import wait_until


@pytest.fixture
def raw(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawSql]:
    """A plain connection to a database with two jobs in it; commands find it, too."""
    monkeypatch.setenv("TENURE_DATABASE", database_url)
    for name in ("TENURE_CONFIG", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    with Tenure(database_url) as app:
        app.enqueue("email")
        app.cancel(app.enqueue("report").id)
    connection = RawSql(database_url)
    yield connection
    connection.close()


def test_verify_finds_nothing_where_nothing_is_wrong(raw: RawSql) -> None:
    assert output_of("verify") == "jobs checked: 2; no violation"
    assert cli_json("verify") == []


def test_verify_lists_what_is_wrong_and_says_so_by_its_exit_code(raw: RawSql) -> None:
    raw.drop_triggers()
    raw.drop_checks()
    raw.run("UPDATE {job} SET status = 'pending', finished_at = NULL WHERE type = 'report'")
    id = str(raw.value("SELECT id FROM {job} WHERE type = 'report'"))

    table, document = run_cli("verify"), run_cli("verify", "--json")

    assert table.exit_code == document.exit_code == 1
    assert table.stdout.splitlines()[1].startswith(id)
    assert "the ledger ends in the job's status" in table.stdout
    assert "violations" in table.stderr
    found = json.loads(document.stdout)
    assert {violation["job_id"] for violation in found} == {id, ""}  # the counts are of no job
    assert set(found[0]) == {"invariant", "job_id", "found", "advice"}
    told = " ".join(table.stdout.split())
    assert all(f"{each['invariant']}: {each['advice']}" in told for each in found)


def test_verify_says_where_it_stopped_listing(raw: RawSql) -> None:
    raw.drop_triggers()
    raw.drop_checks()
    raw.run("UPDATE {job} SET result = 'null' WHERE type = 'email'")

    assert "No more than 1 of each" in run_cli("verify", "--limit", "1").stdout
    assert "No more than" not in run_cli("verify", "--limit", "2").stdout


def test_doctor_says_how_everything_is(raw: RawSql) -> None:
    result, found = run_cli("doctor"), json.loads(run_cli("doctor", "--json").stdout)
    by_name = {check["name"]: check for check in found}

    assert by_name["tenure"]["found"] == tenure.__version__
    assert by_name["guards"]["health"] == by_name["schema"]["health"] == "ok"
    assert len(result.stdout.splitlines()) > len(found)
    for check in found:
        assert check["name"] in result.stdout
    problems = {check["name"] for check in found if check["health"] == "problem"}
    assert problems <= {"fsync", "full_page_writes"}  # which the tests' own server does without
    assert result.exit_code == (1 if problems else 0)


@pytest.mark.each_engine
def test_doctor_finds_a_guard_that_is_gone(raw: RawSql) -> None:
    raw.drop_triggers()

    result = run_cli("doctor")

    assert result.exit_code == 1
    assert "Illegal transitions are not refused" in " ".join(result.stdout.split())


def test_doctor_looks_at_a_database_that_is_not_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"

    result = run_cli("doctor", "--database", url)

    assert result.exit_code == 0
    assert "not there yet" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_died_is_silent(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENURE_DATABASE", sqlite_url)
    with Tenure(sqlite_url) as app:
        app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60))
    assert output_of("workers").split()[-1] == "working"
    raw = RawSql(sqlite_url)
    raw.run(f"UPDATE tenure_worker SET seen_at = seen_at - {WORKER_IS_LIVE.total_seconds():.0f}000")
    raw.close()
    assert output_of("workers").split()[-1] == "silent"


def test_migrate_tells_both_versions(database_url: str) -> None:
    first = output_of("migrate", "--database", database_url)
    again = output_of("migrate", "--database", database_url)

    version = first.split()[1]
    assert first == f"schema {version} (new)"
    assert again == f"schema {version} (as it was)"


@pytest.mark.each_engine
def test_a_newer_schema_is_refused_and_explained(raw: RawSql) -> None:
    table = "tenure_schema" if raw.engine == "sqlite" else "tenure.schema_version"
    raw.run(f"INSERT INTO {table} VALUES (99, {{now}})")

    for command in ("migrate", "stats", "verify"):
        result = run_cli(command)
        assert result.exit_code == 4
        assert "99" in result.stderr
        assert "upgrade Tenure" in result.stderr
    assert run_cli("doctor").exit_code == 1


READS = [["stats"], ["jobs", "list"], ["jobs", "cancel", "17"], ["tail"], ["queues", "list"]]


@pytest.mark.parametrize("command", READS, ids=" ".join)
def test_reading_makes_no_database(command: list[str], tmp_path: Path) -> None:
    result = run_cli(*command, "--database", f"sqlite:///{tmp_path}/mistyped.db")

    assert result.exit_code == 4
    assert "there is no database of Tenure at" in result.stderr
    assert "mistyped.db: check the address" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [*READS, ["verify"], ["migrate"]], ids=" ".join)
def test_a_log_without_its_database_is_said(command: list[str], tmp_path: Path) -> None:
    """All but `migrate` said that there was no database, and to run `tenure migrate`."""
    log = tmp_path / "jobs.db-wal"
    log.write_bytes(b"jobs that are nowhere else")
    result = run_cli(*command, "--database", f"sqlite:///{tmp_path}/jobs.db")

    assert result.exit_code == 4
    assert "put the database back beside it" in result.stderr
    assert list(tmp_path.iterdir()) == [log]


def test_a_lost_connection_is_not_a_line_of_a_library(postgres_url: str) -> None:
    """The pool logs `discarding closed connection: <psycopg.Connection [BAD] at 0x…>`."""
    with Tenure(postgres_url) as app:
        app.enqueue("email")
    ended = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with psycopg.connect(postgres_url, autocommit=True) as other:
        with psycopg.connect(postgres_url) as holder:
            holder.execute("LOCK TABLE tenure.job")
            command = (*PROGRAM, "verify", "--database", postgres_url)
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            verify = Program(command, env=clean_environment(), **pipes)
            wait_until(lambda: other.execute(ended).fetchall(), "a read that waits")
        said, complained = verify.communicate(timeout=60)
    assert said == "jobs checked: 1; no violation\n"
    assert "discarding" not in complained


def test_reading_makes_no_schema_on_postgres(postgres_url: str) -> None:
    result = run_cli("stats", "--database", postgres_url)

    assert result.exit_code == 4
    assert "there is no database of Tenure at" in result.stderr
    assert run_cli("migrate", "--database", postgres_url).stdout.endswith("(new)\n")


UNUSABLE = ["sqlite:////no/such/folder/jobs.db", "postgresql://127.0.0.1:1/jobs"]


@pytest.mark.parametrize("url", UNUSABLE)
@pytest.mark.parametrize(
    "command", [["stats"], ["jobs", "list"], ["enqueue", "email"], ["verify"], ["migrate"]]
)
def test_a_database_that_does_not_answer(command: list[str], url: str) -> None:
    result = run_cli(*command, "--database", url)

    assert result.exit_code == 4
    assert result.stdout == ""
    assert re.match("Error: (the|there is no) database ", result.stderr)
    assert "`tenure doctor`" in result.stderr


@pytest.mark.parametrize("url", UNUSABLE)
def test_doctor_explains_a_database_that_does_not_answer(url: str) -> None:
    result = run_cli("doctor", "--database", url)

    assert result.exit_code == 1
    assert "problem" in result.stdout


@pytest.mark.parametrize("url", ["mysql://host/jobs", "jobs.db", "sqlite://jobs.db", "sqlite:///"])
def test_a_database_must_have_an_address(url: str) -> None:
    result = run_cli("stats", "--database", url)

    assert result.exit_code == 2
    assert "sqlite:///jobs.db" in result.stderr


def test_the_configuration_file_may_name_the_database(tmp_path: Path, sqlite_url: str) -> None:
    with Tenure(sqlite_url) as app:
        app.enqueue("email")
    config = tmp_path / "tenure.toml"
    config.write_text(f'database = "{sqlite_url}"\n')

    told = output_of("stats", TENURE_CONFIG=str(config), TENURE_DATABASE=None)

    assert "email" in told


def test_a_port_of_something_else_is_no_trouble(sqlite_url: str) -> None:
    assert run_cli("migrate", "--database", sqlite_url, PORT="tcp://10.0.0.1:80").exit_code == 0
