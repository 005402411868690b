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
            lambda: (app.core.forward_to_webhooks(), app.find(type=WEBHOOK))[1],
            "a delivery",
        )
        app.webhooks.remove("shop")
        assert app.webhooks.list() == []


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE tenure.transition",
        "TRUNCATE tenure.job",
        "ALTER TABLE tenure.job DISABLE TRIGGER ALL",
        "ALTER TABLE tenure.transition DROP COLUMN actor",
        "CREATE TABLE tenure.mine (a int)",
        "CREATE OR REPLACE FUNCTION tenure.clock() RETURNS timestamptz LANGUAGE sql"
        " AS 'SELECT now()'",
        "SET session_replication_role = replica",
        "DROP SCHEMA tenure CASCADE",
    ],
)
def test_the_guards_are_out_of_its_reach(database_url: str, statement: str) -> None:
    with (
        psycopg.connect(database_url) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
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
