"""What `tenure doctor` reads from a database, and what it makes of it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from tenure import Tenure
from tenure.store import doctor as checks
from tenure.store.postgres import doctor as postgres_checks
from tenure.store.sqlite import doctor as sqlite_checks
from tenure.store.sqlite.connection import path_of
from tenure.values.findings import CheckResult
from tenure.worker.process import log_checks
from tests.support.clock import Clock

MANUAL = Path(__file__).parents[2] / "docs" / "how-to" / "back-up-and-upgrade.md"
REPAIR = MANUAL.read_text("utf-8").split("## Restore a dump")[1].split("```sql")[1].split("```")[0]


def found(url: str) -> dict[str, checks.Check]:
    return {check.name: check for check in Tenure(url).check()}


def test_a_fresh_database_has_no_problem_and_looking_makes_none(database_url: str) -> None:
    before = found(database_url)
    versions = Tenure(database_url).migrate()
    after = found(database_url)

    assert versions[0] == 0
    assert "guards" not in before
    problems = {
        c.name for c in (*before.values(), *after.values()) if c.health is CheckResult.PROBLEM
    }
    assert problems <= {"fsync", "full_page_writes"}  # which the tests' own server does without
    assert after["schema"].found == str(versions[1])
    assert after["guards"].health is after["clock"].health is CheckResult.OK


def test_looking_does_not_make_a_file(sqlite_url: str) -> None:
    assert found(sqlite_url)["database"].found == "not there yet"
    assert found(sqlite_url)["database"].found == "not there yet"


def test_a_log_without_its_database_is_no_new_database(sqlite_url: str) -> None:
    """It said that the next program makes the database, which every program refuses."""
    path = path_of(sqlite_url)
    with Tenure(sqlite_url) as app:
        app.enqueue("mail")
        away = path.rename(path.with_suffix(".away"))
        check = found(sqlite_url)["database"]
        assert check.health is CheckResult.PROBLEM
        assert "put the database back beside it" in check.found
        away.rename(path)
    assert found(sqlite_url)["database"].health is CheckResult.OK


def test_every_check_that_is_not_ok_says_what_to_do(database_url: str) -> None:
    for check in found(database_url).values():
        assert (check.advice == "") == (check.health is CheckResult.OK), check


def test_a_guard_that_was_removed_is_a_problem(sqlite_url: str) -> None:
    Tenure(sqlite_url).migrate()
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as connection:
        connection.execute("DROP TRIGGER tenure_job_moves")
    connection.close()

    guards = found(sqlite_url)["guards"]

    assert guards.health is CheckResult.PROBLEM
    assert "tenure_job_moves" in guards.advice


@pytest.mark.postgres
def test_a_guard_that_was_switched_off_is_a_problem(postgres_url: str) -> None:
    import psycopg

    Tenure(postgres_url).migrate()
    with psycopg.connect(postgres_url) as connection:
        connection.execute("ALTER TABLE tenure.job DISABLE TRIGGER job_moved")

    guards = found(postgres_url)["guards"]

    assert guards.health is CheckResult.PROBLEM
    assert "job_moved" in guards.advice


@pytest.mark.postgres
def test_a_server_that_acknowledges_too_early_is_a_problem(postgres_url: str) -> None:
    import psycopg

    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off',"
            " current_database()); END $$"
        )

    assert found(postgres_url)["synchronous_commit"].health is CheckResult.PROBLEM


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////no/such/folder/jobs.db",
        "sqlite:///:memory:",
        pytest.param("postgresql://127.0.0.1:1/jobs", marks=pytest.mark.postgres),
    ],
)
def test_a_database_that_cannot_be_used_is_a_problem(url: str) -> None:
    database = found(url)["database"]

    assert database.health is CheckResult.PROBLEM
    assert database.advice


def test_a_file_that_is_no_database_is_a_problem(sqlite_url: str) -> None:
    Path(sqlite_url.removeprefix("sqlite:///")).write_text("not a database " * 1000)

    checks = found(sqlite_url)
    assert checks["database"].health is CheckResult.PROBLEM
    assert checks["disk"].health is CheckResult.OK  # looked at before: with none, no file opens


def test_a_damaged_file_is_a_problem_and_a_backup_beside_the_log_of_another_is_one_cause(
    sqlite_url: str,
) -> None:
    Tenure(sqlite_url).migrate()
    with Path(sqlite_url.removeprefix("sqlite:///")).open("r+b") as file:
        file.seek(100)  # the header stays
        file.write(b"\xff" * 4000)

    database = found(sqlite_url)["database"]
    assert database.found.endswith("malformed")
    assert "these two belong to the file before: delete them and put the backup" in database.advice


@pytest.mark.parametrize(
    ("version", "health"),
    [
        ((3, 37, 2), CheckResult.PROBLEM),
        ((3, 38, 0), CheckResult.WARNING),
        ((3, 44, 6), CheckResult.OK),
        ((3, 46, 1), CheckResult.WARNING),
        ((3, 50, 6), CheckResult.WARNING),
        ((3, 50, 7), CheckResult.OK),
        ((3, 51, 2), CheckResult.WARNING),
        ((3, 51, 3), CheckResult.OK),
        ((3, 54, 0), CheckResult.OK),
    ],
)
def test_sqlite_versions(version: tuple[int, int, int], health: CheckResult) -> None:
    assert sqlite_checks.sqlite_library(version).health is health


@pytest.mark.parametrize(
    ("found", "health"), [(0, "warning"), (1, "problem"), (2, "ok"), (3, "ok"), (4, "problem")]
)
def test_schema_versions(found: int, health: str) -> None:
    assert checks.schema(found, 2).health == health


@pytest.mark.parametrize(
    ("store", "health"),
    [(1000.0, "ok"), (1000.4, "ok"), (1002.0, "warning"), (998.0, "warning"), (1001.5, "ok")],
)
def test_clocks_may_differ_by_a_second_beyond_the_time_the_question_took(
    store: float, health: str
) -> None:
    assert checks.clock(store, before=1000.0, after=1000.5).health == health


def test_a_ledger_of_another_cluster_is_a_problem_that_the_manual_mends(postgres_url: str) -> None:
    import psycopg

    with Tenure(postgres_url) as app:
        reached, restored = app.enqueue("email"), app.enqueue("email")
        assert found(postgres_url)["ledger"].health is CheckResult.OK
        with psycopg.connect(postgres_url, autocommit=True) as owner:
            owner.execute("ALTER TABLE tenure.transition DISABLE TRIGGER transition_is_final")
            owner.execute(
                "UPDATE tenure.transition SET xid = '900000000000' WHERE job_id = %s", [restored.id]
            )
            owner.execute("ALTER TABLE tenure.transition ENABLE ALWAYS TRIGGER transition_is_final")
            assert found(postgres_url)["ledger"].health is CheckResult.PROBLEM
            assert [one.transition.job_id for one in app.events.read().events] == [reached.id]
            for statement in REPAIR.split(";")[:-1]:
                owner.execute(statement.encode())
        assert found(postgres_url)["ledger"].health is CheckResult.OK
        assert found(postgres_url)["guards"].health is CheckResult.OK
        later = app.enqueue("email")
        assert [one.transition.job_id for one in app.events.read().events] == [
            reached.id,
            restored.id,
            later.id,
        ]


def test_postgres_facts() -> None:
    assert postgres_checks.server(130_009, 14).health is CheckResult.PROBLEM
    assert postgres_checks.server(150_004, 14) == checks.Check(
        "server", CheckResult.OK, "PostgreSQL 15.4"
    )
    assert postgres_checks.role(in_recovery=True).health is CheckResult.PROBLEM
    assert postgres_checks.role(in_recovery=False).health is CheckResult.OK
    for name in postgres_checks.SETTINGS:
        value = "off" if name != "default_transaction_read_only" else "on"
        assert checks.setting(name, value, postgres_checks.SETTINGS).health is CheckResult.PROBLEM


@pytest.mark.requirement("C20")
@pytest.mark.parametrize(
    ("address", "health"),
    [
        ("postgresql:///jobs", CheckResult.OK),
        ("postgresql:///jobs?host=/run/postgresql", CheckResult.OK),
        ("postgresql://localhost/jobs", CheckResult.OK),
        ("postgresql://127.0.0.1:5433/jobs?sslmode=disable", CheckResult.OK),
        ("postgresql://[::1]/jobs", CheckResult.OK),
        ("postgresql://db.example/jobs", CheckResult.WARNING),
        ("postgresql://db.example/jobs?sslmode=require", CheckResult.WARNING),
        ("postgresql://db.example/jobs?sslmode=verify-ca", CheckResult.WARNING),
        ("postgresql://localhost,db.example/jobs", CheckResult.WARNING),
        ("postgresql:///jobs?hostaddr=192.0.2.1", CheckResult.WARNING),
        ("postgresql://u:secret@db.example/jobs?sslmode=verify-full", CheckResult.OK),
    ],
)
def test_the_way_to_another_machine(
    address: str, health: CheckResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGSSLMODE", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    check = next(postgres_checks.check_postgres(address))  # nobody is asked for it
    assert (check.name, check.health) == ("transport", health)
    assert "secret" not in f"{check.found} {check.advice}"
    if health is CheckResult.WARNING:
        assert "sslmode=verify-full" in check.advice
        monkeypatch.setenv("PGSSLMODE", "verify-full")
        stated = "sslmode=" in address
        assert (next(postgres_checks.check_postgres(address)).health is CheckResult.OK) != stated


@pytest.mark.requirement("C20")
def test_where_the_environment_says_that_the_server_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGSSLMODE", raising=False)
    monkeypatch.setenv("PGHOST", "db.example")
    assert next(postgres_checks.check_postgres("postgresql:///jobs")).health is CheckResult.WARNING


def test_what_a_file_may_be_like() -> None:
    assert sqlite_checks.files(0o600, 1, []).health is CheckResult.OK
    assert sqlite_checks.files(0o660, 1, []).health is CheckResult.OK
    assert sqlite_checks.files(0o604, 1, []).health is CheckResult.WARNING
    assert sqlite_checks.files(0o600, 2, []).health is CheckResult.PROBLEM
    owned = sqlite_checks.files(0o660, 1, [], owner=65534)
    assert (owned.health, owned.found) == (CheckResult.WARNING, "owned by user 65534")
    other = sqlite_checks.files(0o600, 1, ["jobs.db-wal"])
    assert other.health is CheckResult.PROBLEM
    assert "jobs.db-wal" in other.advice
    assert sqlite_checks.space(sqlite_checks.MIN_SPACE).health is CheckResult.OK
    assert sqlite_checks.space(sqlite_checks.MIN_SPACE - 1).health is CheckResult.WARNING
    assert sqlite_checks.space(sqlite_checks.NO_SPACE - 1).health is CheckResult.PROBLEM
    assert (
        sqlite_checks.file_system("ext4").health
        is sqlite_checks.file_system("").health
        is CheckResult.OK
    )
    assert sqlite_checks.file_system("nfs4").health is CheckResult.WARNING


def test_a_file_of_another_user_is_warned_of(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tenure(sqlite_url).migrate()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert found(sqlite_url)["files"].found == f"owned by user {owner}"


def test_what_may_stand_around_a_server() -> None:
    assert postgres_checks.pooler(lends_by_transaction=True).health is CheckResult.WARNING
    assert postgres_checks.pooler(lends_by_transaction=False).health is CheckResult.OK
    assert postgres_checks.dead_rows(None).health is CheckResult.OK
    assert "session 7" in postgres_checks.dead_rows("session 7 is old").advice


def test_a_file_that_others_may_open_and_one_with_two_names_are_noticed(sqlite_url: str) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    Tenure(sqlite_url).migrate()
    assert found(sqlite_url)["files"].health is CheckResult.OK
    path.chmod(0o604)
    assert found(sqlite_url)["files"].health is CheckResult.WARNING
    path.chmod(0o600)
    path.with_name("other.db").hardlink_to(path)
    assert found(sqlite_url)["files"].health is CheckResult.PROBLEM


def test_a_transaction_that_keeps_others_from_writing_is_named(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An enqueue fails as `database is locked`, and refers to `tenure doctor`."""
    monkeypatch.setattr(sqlite_checks, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(sqlite_checks.sqlite_connection, "BUSY_TIMEOUT_MS", 40_000)
    Tenure(sqlite_url).migrate()
    path = sqlite_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        locked = found(sqlite_url)
        assert time.monotonic() - began < 30, "it does not wait as long as a writer"
        other.execute("ROLLBACK")
    assert locked["write_lock"].health is CheckResult.WARNING
    assert f"fuser -v {path}" in locked["write_lock"].advice
    assert locked["limits"].health is CheckResult.OK, "the other checks only read"
    assert found(sqlite_url)["write_lock"].health is CheckResult.OK
    with Tenure(sqlite_url) as app:
        assert app.enqueue("email"), "the check has released it"


def test_a_clock_that_was_set_back_is_noticed(database_url: str) -> None:
    Tenure(database_url).migrate()
    clock = Clock(database_url)
    with Tenure(database_url) as app:
        app.enqueue("email")
        assert found(database_url)["time"].health is CheckResult.OK
        clock.advance(3600)
        app.enqueue("email")
        clock.advance(-3600)
        assert found(database_url)["time"].found == "the latest transition is 3600 s in the future"
        app.core.measure()  # as workers do each second
        app.enqueue("email")
        assert found(database_url)["time"].found == "the latest transition is 3600 s in the future"
    clock.close()


@pytest.mark.postgres
def test_a_table_that_a_crash_would_empty_is_a_problem(postgres_url: str) -> None:
    import psycopg

    Tenure(postgres_url).migrate()
    assert found(postgres_url)["tables"].health is CheckResult.OK
    with psycopg.connect(postgres_url) as connection:
        connection.execute("ALTER TABLE tenure.transition SET UNLOGGED")
    assert "transition" in found(postgres_url)["tables"].advice


@pytest.mark.postgres
@pytest.mark.scenario(58)
def test_a_worker_and_a_server_log_at_their_start_what_is_not_ok(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    import psycopg

    caplog.set_level("INFO")  # a command that ran in this process may have left it higher
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off',"
            " current_database()); END $$"
        )
    log_checks(Tenure(postgres_url)).join()

    told = {record.getMessage().split(":")[0]: record.levelname for record in caplog.records}
    assert told["synchronous_commit"] == "ERROR"
    assert told["schema"] == "WARNING"
    assert "server" not in told


def test_triggers_are_those_that_stand_after_every_step() -> None:
    scripts = iter(
        ["CREATE TRIGGER one BEFORE\nCREATE TRIGGER two AFTER", "DROP TRIGGER IF EXISTS one;"]
    )

    assert checks.trigger_names(scripts) == {"two"}


def test_a_folder_that_goes_away_meanwhile_is_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    url = f"sqlite:///{folder}/jobs.db"
    with Tenure(url):
        pass
    looking = sqlite_checks.check_sqlite(url)
    while next(looking).name != "database":
        pass
    shutil.rmtree(folder)
    assert [(one.name, one.health) for one in looking][-1] == ("database", CheckResult.PROBLEM)


@pytest.mark.postgres
def test_a_locked_table_is_named_and_not_waited_for(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    monkeypatch.setattr(postgres_checks, "LOCK_SECONDS", 0.2)
    Tenure(postgres_url).migrate()
    with psycopg.connect(postgres_url, application_name="repair") as culprit:
        culprit.execute("LOCK TABLE tenure.job")
        check = found(postgres_url)["locks"]
        assert check.health is CheckResult.PROBLEM
        pid = culprit.info.backend_pid
        assert f"session {pid} of " in check.advice
        assert "(repair) has the table job locked since " in check.advice
        assert f"SELECT pg_terminate_backend({pid})" in check.advice
    assert found(postgres_url)["locks"].health is CheckResult.OK


@pytest.mark.postgres
def test_a_lock_that_ends_soon_is_no_problem(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tenure itself locks the table of jobs when it sets the first limit of a queue."""
    import psycopg

    Tenure(postgres_url).migrate()
    with psycopg.connect(postgres_url) as brief, psycopg.connect(postgres_url) as asking:
        brief.execute("LOCK TABLE tenure.job")
        monkeypatch.setattr(postgres_checks.time, "sleep", lambda _: brief.rollback())
        assert postgres_checks.locked(asking, "tenure") is None
