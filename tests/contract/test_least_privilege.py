"""What the role that deploy.md advises can do, and what it cannot.

Tests of the contract that touch every table run as this role too: see `granted_role`.
"""

from __future__ import annotations

import psycopg
import pytest

from tenure import Tenure
from tenure.webhooks.deliveries import WEBHOOK
from tests.contract.granted_role import as_granted_role
from tests.support.store import StoreHarness, new_job
from tests.support.waiting import wait_until

pytestmark = [as_granted_role, pytest.mark.requirement("C11")]


def test_tokens(database_url: str) -> None:
    with Tenure(database_url) as app:
        app.tokens.create("shop", ["enqueue"])
        app.core.note_token_use(["shop"]).result()
        app.tokens.revoke("shop")
        (token,) = app.tokens.list()
        assert token.used_at
        assert not token.valid
        assert app.verify() == []


def test_webhooks(database_url: str) -> None:
    with Tenure(database_url) as app:
        app.webhooks.create("shop", "https://example.com", ["enqueued"])
        app.enqueue("mail")
        wait_until(
            lambda: (app.core.forward_to_webhooks(), app.find(type=WEBHOOK))[1], "a delivery"
        )
        app.webhooks.remove("shop")
        assert app.webhooks.list() == []


FORBIDDEN = (
    "DROP TABLE tenure.transition",
    "TRUNCATE tenure.job",
    "ALTER TABLE tenure.job DISABLE TRIGGER ALL",
    "ALTER TABLE tenure.transition DROP COLUMN actor",
    "CREATE TABLE tenure.mine (a int)",
    "CREATE OR REPLACE FUNCTION tenure.clock() RETURNS timestamptz LANGUAGE sql AS 'SELECT now()'",
    "SET session_replication_role = replica",
    "DROP SCHEMA tenure CASCADE",
)


def test_the_guards_are_out_of_its_reach(database_url: str, subtests: pytest.Subtests) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        for statement in FORBIDDEN:
            with subtests.test(statement), pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def test_the_ledger_stands_even_so(harness: StoreHarness, database_url: str) -> None:
    (added,) = harness.store.add([new_job()]).result()
    for statement in (
        "UPDATE tenure.transition SET actor = 'nobody'",
        "DELETE FROM tenure.transition",
        "UPDATE tenure.job SET status = 'completed'",
    ):
        with (
            psycopg.connect(database_url) as connection,
            pytest.raises(psycopg.DatabaseError, match=r"^tenure: |violates check"),
        ):
            connection.execute(statement.encode())
    assert harness.store.read.get(added.job.id) == added.job


OWN_FUNCTION = """
CREATE TEMP TABLE mine (id uuid);
CREATE FUNCTION pg_temp.forge() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tenure.transition (job_id, at, attempt, token, target, event, source, actor)
    VALUES (NEW.id, now(), 0, 0, 'cancelled', 'cancelled', 'pending', 'token:boss');
    RETURN NULL;
END $$;
CREATE TRIGGER forge AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION pg_temp.forge();
"""
BORROWED_ENTRY = """
CREATE TEMP TABLE mine AS SELECT * FROM tenure.job LIMIT 0;
CREATE TRIGGER forge AFTER INSERT ON mine REFERENCING NEW TABLE AS entered
    FOR EACH STATEMENT EXECUTE FUNCTION tenure.record_entry();
"""
BORROWED_MOVE = """
CREATE TEMP TABLE mine AS SELECT * FROM tenure.job;
CREATE TRIGGER forge AFTER UPDATE ON mine REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION tenure.record_move();
"""
BY_HAND = """
INSERT INTO tenure.transition (job_id, at, attempt, token, target, event)
SELECT job_id, at, attempt, token, target, event FROM tenure.transition
"""


@pytest.mark.parametrize(
    ("prepare", "forge"),
    [
        (OWN_FUNCTION, "INSERT INTO mine SELECT id FROM tenure.job"),
        (BORROWED_ENTRY, "INSERT INTO mine SELECT * FROM tenure.job"),
        (BORROWED_MOVE, "UPDATE mine SET status = 'cancelled', finished_at = now()"),
        ("", BY_HAND),
    ],
    ids=["own function", "record_entry", "record_move", "by hand"],
)
def test_the_ledger_is_not_forged_by_a_temporary_table(
    harness: StoreHarness, database_url: str, prepare: str, forge: str
) -> None:
    harness.add()
    before = harness.sql.contents()
    harness.sql.run("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA tenure TO PUBLIC")  # as a dump may
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(prepare.encode())
        with pytest.raises(
            psycopg.DatabaseError, match="only transitions of jobs write the ledger"
        ):
            connection.execute(forge.encode())
    assert harness.sql.contents() == before


def test_no_temporary_table_borrows_a_trigger(
    harness: StoreHarness, database_url: str, subtests: pytest.Subtests
) -> None:
    """They run with the owner's rights: one of them wrote what limits held before."""
    mine = "SELECT proname FROM pg_proc WHERE pronamespace = 'tenure'::regnamespace"
    names = harness.sql.run(f"{mine} AND prorettype = 'trigger'::regtype")
    assert len(names) > 15
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TEMP TABLE mine (queue text)")
        for (name,) in names:
            trigger = f"CREATE TRIGGER forge AFTER INSERT ON mine EXECUTE FUNCTION tenure.{name}()"
            with subtests.test(name), pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(trigger.encode())
