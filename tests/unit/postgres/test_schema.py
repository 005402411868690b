"""The PostgreSQL schema: made once by whoever comes first, never by somebody who may not."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tenure import NewJob, Tenure
from tenure.errors import SchemaMismatch, StoreUnavailable
from tenure.store import migrate, open_store
from tenure.store.postgres.doctor import check_postgres
from tenure.store.postgres.schema import script, upgrade
from tenure.values.findings import CheckResult
from tests.support.postgres import PostgresServer
from tests.support.store import claim_request, new_job

NEWEST = migrate.newest("postgres")


@pytest.fixture
def raw(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def role(raw: psycopg.Connection[Any]) -> Iterator[str]:
    """A role that may connect and nothing else."""
    name = f"tenure_{uuid.uuid4().hex}"
    try:
        raw.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'guest'")
    except psycopg.errors.InsufficientPrivilege as error:
        pytest.skip(f"the server of TENURE_TEST_DATABASE_URL: {error}")
    yield name
    raw.execute(f"DROP OWNED BY {name}")
    raw.execute(f"DROP ROLE {name}")


def as_role(url: str, role: str) -> str:
    mark = "&" if "?" in url else "?"
    return f"{url}{mark}user={role}&password=guest"


def in_schema(url: str, schema: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}schema={schema}"


def test_it_is_made_once_and_then_left_alone(
    postgres_url: str, raw: psycopg.Connection[Any]
) -> None:
    assert upgrade(postgres_url) == NEWEST
    assert upgrade(postgres_url) == NEWEST
    versions = raw.execute("SELECT version FROM tenure.schema_version").fetchall()
    assert versions == [(number,) for number, _ in migrate.steps("postgres")]


def test_several_starters_at_once(postgres_url: str, raw: psycopg.Connection[Any]) -> None:
    """Also where transactions, by default, see what was there when they began."""
    level = "default_transaction_isolation = 'repeatable read'"
    raw.execute(f'ALTER DATABASE "{raw.info.dbname}" SET {level}')
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(upgrade, [postgres_url] * 12)) == [NEWEST] * 12
    assert raw.execute("SELECT count(*) FROM tenure.schema_version").fetchone() == (NEWEST,)


def test_a_current_schema_is_opened_without_waiting_for_a_migration(
    postgres_url: str, raw: psycopg.Connection[Any]
) -> None:
    upgrade(postgres_url)
    with raw.transaction():
        raw.execute("SELECT pg_advisory_xact_lock(hashtextextended('tenure tenure', 0))")
        assert upgrade(postgres_url) == NEWEST


def test_a_migration_is_done_whole_or_not_at_all(
    postgres_url: str, raw: psycopg.Connection[Any]
) -> None:
    # The second table is in the way: everything made before it must be gone again.
    raw.execute("CREATE SCHEMA tenure")
    raw.execute("CREATE TABLE tenure.transition (mine text)")
    with pytest.raises(SchemaMismatch, match="something else than Tenure's tables"):
        upgrade(postgres_url)
    names = raw.execute("SELECT relname FROM pg_class WHERE relnamespace = 'tenure'::regnamespace")
    assert names.fetchall() == [("transition",)]


@pytest.mark.scenario(82)
def test_a_newer_schema_is_refused_and_untouched(
    postgres_url: str, raw: psycopg.Connection[Any]
) -> None:
    upgrade(postgres_url)
    raw.execute("INSERT INTO tenure.schema_version VALUES (%s, now())", (NEWEST + 2,))
    for start in (open_store, upgrade):
        with pytest.raises(SchemaMismatch, match=f"schema {NEWEST + 2}"):
            start(postgres_url)
    assert raw.execute("SELECT max(version) FROM tenure.schema_version").fetchone() == (NEWEST + 2,)


def test_a_role_that_may_not_read_the_version_is_told_so(postgres_url: str, role: str) -> None:
    upgrade(postgres_url)
    with pytest.raises(SchemaMismatch, match="grant this one the use of its tables"):
        open_store(as_role(postgres_url, role))


def test_two_schemas_in_one_database_do_not_meet(postgres_url: str) -> None:
    stores = [open_store(in_schema(postgres_url, name)) for name in ("order", "jobs_2")]
    try:
        (added,) = stores[0].add([new_job()]).result()
        assert stores[0].read.get(added.job.id) == added.job
        assert stores[1].read.get(added.job.id) is None
        assert [store.read.violations(1) for store in stores] == [[], []]
    finally:
        for store in stores:
            store.close()


def test_a_role_without_rights_is_told_so(postgres_url: str, role: str) -> None:
    with pytest.raises(SchemaMismatch, match="as a role that may"):
        upgrade(as_role(postgres_url, role))


@pytest.mark.requirement("C11")
def test_a_role_that_may_only_use_the_tables_works(
    postgres_url: str, role: str, raw: psycopg.Connection[Any]
) -> None:
    upgrade(postgres_url)
    raw.execute(f"GRANT USAGE ON SCHEMA tenure TO {role}")
    raw.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tenure TO {role}")
    store = open_store(as_role(postgres_url, role))
    try:
        (added,) = store.add([new_job()]).result()
        assert store.read.get(added.job.id) == added.job
        assert [entry.event for entry in store.read.history(added.job.id)] == ["enqueued"]
    finally:
        store.close()


def test_a_schema_that_the_administrator_made_is_filled(
    postgres_url: str, role: str, raw: psycopg.Connection[Any]
) -> None:
    raw.execute(f"CREATE SCHEMA tenure AUTHORIZATION {role}")
    assert upgrade(as_role(postgres_url, role)) == NEWEST


def test_a_database_that_cannot_hold_every_text_is_refused(
    postgres_server: PostgresServer, postgres_url: str, raw: psycopg.Connection[Any]
) -> None:
    name = f"{raw.info.dbname}_latin"
    make = "CREATE DATABASE {} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    raw.execute(sql.SQL(make).format(sql.Identifier(name)))
    try:
        with pytest.raises(SchemaMismatch, match="LATIN1"):
            upgrade(postgres_server.url(name))
    finally:
        postgres_server.drop_database(name)


def test_a_schema_whose_version_cannot_be_seen_is_not_made_again(
    postgres_url: str, raw: psycopg.Connection[Any], role: str
) -> None:
    """A worker said that the role may not set up the schema, and ended; doctor saw no schema."""
    with Tenure(postgres_url) as app:
        app.enqueue("mail")
    raw.execute(f"GRANT USAGE ON SCHEMA tenure TO {role}".encode())
    raw.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA tenure TO {role}".encode())
    raw.execute("ALTER TABLE tenure.schema_version ENABLE ROW LEVEL SECURITY")
    hidden = Tenure(as_role(postgres_url, role))
    with pytest.raises(StoreUnavailable, match="row-level security hides"):
        hidden.open()
    *_, last = hidden.check()
    assert (last.name, last.found) == ("database", "cannot be used")
    assert "row-level security hides" in last.advice


def test_a_copy_without_rows_is_told_what_helps(
    postgres_url: str, raw: psycopg.Connection[Any]
) -> None:
    """`pg_dump --schema-only` makes one. It was said to be hidden, or restored right now."""
    upgrade(postgres_url)
    raw.execute("DELETE FROM tenure.schema_version")
    with pytest.raises(StoreUnavailable, match="copied without its rows: drop such a copy"):
        upgrade(postgres_url)


def test_rows_that_row_level_security_may_hide_are_a_warning(
    postgres_url: str, raw: psycopg.Connection[Any], role: str
) -> None:
    """Workers took no job, lists were empty, and doctor called everything ok."""
    upgrade(postgres_url)
    raw.execute(f"GRANT USAGE ON SCHEMA tenure TO {role}".encode())
    every = f"SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tenure TO {role}"
    raw.execute(f"GRANT {every}".encode())

    def rows(url: str) -> tuple[CheckResult, str]:
        check = {one.name: one for one in Tenure(url).check()}["rows"]
        return check.health, check.advice

    limited = as_role(postgres_url, role)
    assert rows(limited)[0] is CheckResult.OK
    raw.execute("ALTER TABLE tenure.job ENABLE ROW LEVEL SECURITY")
    raw.execute("ALTER TABLE tenure.ready ENABLE ROW LEVEL SECURITY")
    health, advice = rows(limited)
    assert health is CheckResult.WARNING
    assert "rows of job, ready" in advice
    assert rows(postgres_url)[0] is CheckResult.OK, "the owner sees them"

    for policy in (
        "one ON tenure.job FOR SELECT USING (true)",
        "two ON tenure.job USING (queue = 'mail')",
        "for_others ON tenure.job TO pg_monitor USING (true)",
        "read_only ON tenure.job USING (true) WITH CHECK (queue = 'mail')",
        f"three ON tenure.job TO {role} USING (true)",
    ):
        assert "rows of job, ready" in rows(limited)[1]
        raw.execute(f"CREATE POLICY {policy}".encode())
    assert "rows of ready" in rows(limited)[1], "the last one lets this role do everything"
    raw.execute("CREATE POLICY one ON tenure.ready USING (true) WITH CHECK (true)")
    assert rows(limited)[0] is CheckResult.OK
    raw.execute("CREATE POLICY four ON tenure.job AS RESTRICTIVE USING (queue = 'mail')")
    assert "rows of job" in rows(limited)[1]


def test_a_database_that_refuses_changes_of_its_schema_is_told_so(
    postgres_url: str, raw: psycopg.Connection[Any]
) -> None:
    raw.execute(
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no changes on Fridays'; END $$"
    )
    raw.execute("CREATE EVENT TRIGGER fridays ON ddl_command_start EXECUTE FUNCTION refuse()")
    with pytest.raises(SchemaMismatch, match=r"schema tenure .*: no changes on Fridays"):
        upgrade(postgres_url)


def test_a_database_that_cannot_be_written_is_unavailable(
    postgres_url: str, raw: psycopg.Connection[Any]
) -> None:
    raw.execute(f'ALTER DATABASE "{raw.info.dbname}" SET default_transaction_read_only = on')
    with pytest.raises(StoreUnavailable, match="in a read-only transaction"):
        upgrade(postgres_url)


def test_no_rule_depends_on_how_the_database_reads_sql(
    postgres_url: str, raw: psycopg.Connection[Any]
) -> None:
    for setting in ("standard_conforming_strings = off", "plpgsql.extra_errors = 'all'"):
        raw.execute(f'ALTER DATABASE "{raw.info.dbname}" SET {setting}')
    with Tenure(postgres_url) as app, psycopg.connect(postgres_url) as own:
        app.enqueue("mail", tags=["customer:17"])
        for statement in ("enqueue('a b', '{}')", "enqueue('mail', '{}', queue => 'a/b')"):
            with pytest.raises(psycopg.Error, match="not a name"), own.transaction():
                own.execute(f"SELECT tenure.{statement}")


BETTER_FITS = (
    ("unnest(uuid[])", "SETOF uuid"),
    ("pg_column_size(uuid[])", "integer"),
    ("cardinality(uuid[])", "integer"),
    ("format(text, regclass, name)", "text"),
)
"""Functions that fit calls of Tenure better than those of PostgreSQL do."""


@pytest.mark.requirement("C11")
def test_functions_of_other_roles_are_not_called(
    postgres_url: str, raw: psycopg.Connection[Any]
) -> None:
    for function, result in BETTER_FITS:
        raw.execute(
            f"CREATE FUNCTION public.{function} RETURNS {result} LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'called'; END $$".encode()
        )
    with raw.transaction(force_rollback=True):
        raw.execute("SET LOCAL search_path = pg_temp, public")
        raw.execute(script(postgres_url, 0, begin=False).encode())
        assert raw.execute("SHOW search_path").fetchone() == ("pg_temp, public",)
    with Tenure(postgres_url) as app:
        job = app.enqueue("mail", tags=["a"], priority=1)
        app.enqueue_many([NewJob("mail", {}, {}), NewJob("mail", {}, {})])
        app.core.claim(claim_request(1))
        assert [one.id for one in app.find(tag="a")] == [job.id]
        assert app.verify() == []


def test_a_server_that_does_not_answer_is_unavailable(free_tcp_port: int) -> None:
    with pytest.raises(StoreUnavailable, match="did not answer"):
        open_store(f"postgresql://127.0.0.1:{free_tcp_port}/app")


def test_no_plan_that_was_made_dear_on_purpose_is_compiled(
    postgres_url: str, raw: psycopg.Connection[Any]
) -> None:
    """On a caller's connection, with PostgreSQL's `jit` on, a trigger took 300 ms so."""
    upgrade(postgres_url)
    found = raw.execute(
        "SELECT proname, proconfig FROM pg_proc WHERE pronamespace = 'tenure'::regnamespace"
    ).fetchall()
    dear = {name: config for name, config in found if "enable_seqscan=off" in (config or ())}
    assert dear
    assert [name for name, config in dear.items() if "jit=off" not in config] == []


def test_a_schema_that_was_renamed(postgres_url: str, raw: psycopg.Connection[Any]) -> None:
    """It was opened, and each write was an outage: its functions look for the old name."""
    upgrade(postgres_url)
    raw.execute("ALTER SCHEMA tenure RENAME TO jobs")
    advice = "renamed.* ALTER SCHEMA jobs RENAME TO tenure"
    renamed = in_schema(postgres_url, "jobs")
    with pytest.raises(SchemaMismatch, match=advice):
        open_store(renamed)
    (said,) = (one.advice for one in check_postgres(renamed) if one.name == "schema")
    assert re.search(advice, said)


def test_the_doctor_says_that_a_role_has_no_rights(postgres_url: str, role: str) -> None:
    Tenure(postgres_url).migrate()
    *_, last = Tenure(as_role(postgres_url, role)).check()
    assert (last.name, last.found) == ("database", "this role may not read it")
    assert "permission denied for schema tenure: grant this role what" in last.advice


def test_the_doctor_names_the_rights_that_a_role_lacks(
    postgres_url: str, role: str, raw: psycopg.Connection[Any]
) -> None:
    """Statements that needed them failed hours later, and it found nothing wrong."""
    upgrade(postgres_url)
    raw.execute(f"GRANT USAGE ON SCHEMA tenure TO {role}")
    raw.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tenure TO {role}")
    url = as_role(postgres_url, role)
    (rights,) = (check for check in Tenure(url).check() if check.name == "rights")
    assert rights.health == "ok"
    raw.execute(f"REVOKE INSERT, DELETE ON tenure.bulk FROM {role}")
    (rights,) = (check for check in Tenure(url).check() if check.name == "rights")
    assert rights.health == "warning"
    assert "INSERT, DELETE on bulk" in rights.advice
