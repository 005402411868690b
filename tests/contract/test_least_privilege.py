"""The contract, or the part of it that touches every table, as the role that deploy.md advises."""

# ruff: noqa: F401 - the tests that are imported run here once more, with the fixtures below.

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tenure import Tenure
from tenure.records import WEBHOOK
from tenure.store import migrate_store, open_store
from tests.clock import Clock
from tests.contract.desk import Desk, new
from tests.contract.test_add import (
    test_a_key_again_answers_the_first_job,
    test_a_queue_takes_exactly_as_many_as_its_limit,
    test_every_field_comes_back_as_it_was_given,
)
from tests.contract.test_bulk import (
    small_bites,
    test_all_that_match_are_retried_bite_by_bite,
    test_the_record_is_bounded_but_for_what_goes_on,
)
from tests.contract.test_claim import (
    test_a_claim_leases_the_job,
    test_a_turn_reports_first_and_claims_then,
)
from tests.contract.test_leases import (
    test_a_heartbeat_counts_from_now,
    test_a_sweep_spends_the_budget_like_any_failure,
)
from tests.contract.test_operators import (
    test_a_failed_job_runs_again_when_its_limit_is_raised,
    test_each_status_has_its_own_time,
    test_pausing_says_since_when,
)
from tests.contract.test_reading import (
    test_the_history_of_a_job_is_its_whole_path,
    test_workers_that_asked_lately,
)
from tests.contract.test_reports import (
    test_a_large_mixed_batch_is_answered_in_order,
    test_failure_decides_and_requeues_at_once,
    test_success_is_kept_with_its_result,
)
from tests.raw import Raw
from tests.worker.waiting import until

pytestmark = pytest.mark.requirement("C11")

MANUAL = Path(__file__).parents[2] / "docs" / "how-to" / "deploy.md"
GRANTS = MANUAL.read_text("utf-8").split("**Roles.**")[1].split("```sql")[1].split("```")[0]


@pytest.fixture
def owner(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The role that made the schema."""
    migrate_store(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def database_url(postgres_url: str, owner: psycopg.Connection[Any]) -> Iterator[str]:
    """The URL for the role that the application uses."""
    role = f"tenure_{uuid.uuid4().hex}"
    try:
        owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'guest'")
    except psycopg.errors.InsufficientPrivilege as error:
        pytest.skip(f"the server of TENURE_TEST_DATABASE_URL: {error}")
    for statement in GRANTS.split(";")[:-1]:
        owner.execute(statement.replace("TO shop", f"TO {role}").encode())
    yield f"{postgres_url}{'&' if '?' in postgres_url else '?'}user={role}&password=guest"
    owner.execute(f"DROP OWNED BY {role}")
    owner.execute(f"DROP ROLE {role}")


@pytest.fixture
def unaudited_desk(postgres_url: str, database_url: str) -> Iterator[Desk]:
    """A desk whose store is the application's; the clock, a table made later, is the owner's."""
    store = open_store(database_url)
    clock = Clock(postgres_url)
    raw = Raw(postgres_url)
    try:
        yield Desk(store, clock, raw)
    finally:
        store.close()
        clock.close()
        raw.close()


def test_tokens(database_url: str) -> None:
    with Tenure(database_url) as app:
        app.tokens.create("shop", ["enqueue"])
        app.tokens.note_use(["shop"]).result()
        app.tokens.revoke("shop")
        (token,) = app.tokens.list()
        assert token.used_at
        assert not token.valid
        assert app.verify() == []


def test_webhooks(database_url: str) -> None:
    with Tenure(database_url) as app:
        app.webhooks.create("shop", "https://example.com", ["enqueued"])
        app.enqueue("mail")
        until(lambda: (app.webhooks.step(), app.find(type=WEBHOOK))[1], "a delivery")
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


def test_the_ledger_stands_even_so(desk: Desk, database_url: str) -> None:
    (added,) = desk.store.add([new()]).result()
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
    assert desk.store.read.get(added.job.id) == added.job
