"""What the tests of the PostgreSQL store do with its connections."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from tenure.rules.jobs import CheckedJob
from tenure.rules.reports import ClaimRequest, Lease
from tenure.store.postgres.writer import Postgres
from tenure.values.ids import new_ids
from tests.support.kept_databases import KEEPING
from tests.support.store import claim_request
from tests.support.waiting import wait_until

Connection = psycopg.Connection[Any]

OUR_SESSIONS = (
    "FROM pg_stat_activity WHERE application_name = 'tenure' AND datname = current_database()"
)


@contextmanager
def committed(db: Postgres) -> Iterator[Postgres]:
    db.begin()
    yield db
    db.commit()


def add(db: Postgres, count: int = 1, **fields: Any) -> list[str]:
    ids = new_ids(count)
    with committed(db):
        db.insert([CheckedJob(id=id, type="mail", **fields) for id in ids])
    return ids


def take(db: Postgres, count: int = 1, **fields: Any) -> list[Lease]:
    add(db, count, **fields)
    with committed(db):
        return db.claim(claim_request(count))


def claim_alone(db: Postgres, request: ClaimRequest) -> list[Lease] | None:
    """Claim in one round trip; None if that needs a closer look."""
    found = db.exchange_alone([], request)
    return None if found is None else found[1]


def ask_in_store_session(db: Postgres, question: str) -> list[tuple[Any, ...]]:
    """Run a query in the store's own session, to read what only that session can see."""
    return db._run(question).fetchall()


def sessions(raw: Connection) -> int:
    """The connections to this database, but for the one that asks."""
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        f" AND application_name <> '{KEEPING}' AND backend_type = 'client backend'"
    )
    ((count,),) = raw.execute(query)
    return int(count)


def end_sessions(raw: Connection) -> None:
    """End the store's sessions, and wait until they are gone."""
    ended = raw.execute(f"SELECT pid, pg_terminate_backend(pid, 10000) {OUR_SESSIONS}").fetchall()
    assert ended
    pids = [pid for pid, _ in ended]  # one that ends by itself meanwhile cannot be ended
    alive = "SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)"
    wait_until(lambda: not raw.execute(alive, (pids,)).fetchall(), "the sessions to be gone")


def wait_until_a_session_is_blocked(raw: Connection) -> None:
    """Return once a session of the store waits for a lock."""
    blocked = f"SELECT count(*) {OUR_SESSIONS} AND wait_event_type = 'Lock'"
    wait_until(lambda: raw.execute(blocked).fetchone() != (0,), "a session to wait for a lock")


def in_thread(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread
