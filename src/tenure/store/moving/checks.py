"""What `tenure move` finds out before it changes anything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from sqlite3 import Error as SqliteError

from tenure.errors import InvalidInput, StoreUnavailable
from tenure.jobs.findings import Check, CheckResult
from tenure.jobs.redaction import without_password
from tenure.jobs.text import quantity
from tenure.settings import is_sqlite
from tenure.store import schema_of
from tenure.store.doctor import problem
from tenure.store.moving.postgres import PostgresSource
from tenure.store.moving.sides import Source
from tenure.store.moving.sqlite import SqliteSource
from tenure.store.moving.tables import JOB
from tenure.store.moving.target import Target

# isort: split
from psycopg import Error as PostgresError

ALONE_SECONDS = 10.0
RIGHTS = """
SELECT CASE WHEN to_regnamespace('{s}') IS NULL
    THEN has_database_privilege(current_database(), 'CREATE')
    ELSE (SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace
        WHERE oid = to_regnamespace('{s}'))
END"""


@contextmanager
def opened(source: str, target: str) -> Iterator[tuple[Source, Target]]:
    """Connect to both databases, by their URLs.

    Raises InvalidInput if they cannot be a source and a target, and StoreUnavailable.
    """
    if is_sqlite(target):
        raise InvalidInput(
            "the jobs can be moved to PostgreSQL only. To put an SQLite file elsewhere, stop all "
            "programs that use it and move it with its -wal file",
            path="TARGET",
        )
    if not schema_of(source)[0]:
        raise InvalidInput(f"no database of Tenure: {without_password(source)}", path="SOURCE")
    try:
        of = SqliteSource if is_sqlite(source) else PostgresSource
        with closing(of(source)) as source_side, closing(Target(target)) as target_side:
            _be_alone(target_side)
            yield source_side, target_side
    except (PostgresError, SqliteError) as error:
        raise StoreUnavailable(
            f"a database did not answer as it should, run the same command again: {error}"
        ) from error


def _be_alone(target: Target) -> None:
    """Wait for the end of another `tenure move`: of one that was killed, the server ends it."""
    deadline = time.monotonic() + ALONE_SECONDS
    while not target.one("SELECT pg_try_advisory_lock(hashtext('tenure move'))"):
        if time.monotonic() > deadline:
            raise InvalidInput("another `tenure move` to this database runs", path="TARGET")
        time.sleep(ALONE_SECONDS / 100)


def check(source: Source, target: Target) -> list[Check]:
    """Return what would stop moving, and how much there is to move."""
    return [
        _versions(source, target),
        _source(source, target),
        _target(source, target),
        _size(source),
    ]


def _versions(source: Source, target: Target) -> Check:
    (found, needed), (there, needed_there) = schema_of(source.url), schema_of(target.url)
    if found != needed or there not in (0, needed_there):
        advice = "use the same version of Tenure on both, and run `tenure migrate` before"
        return problem("versions", f"schema {found} and {there}", advice)
    return problem("versions", f"schema {found}, as this program needs", "")


def _source(source: Source, target: Target) -> Check:
    state, advice = source.state(), ""
    found = "its jobs can be moved" if state is None else "its jobs are being moved"
    if state is not None and state.target != target.name:
        found = f"its jobs {'were' if state.moved else 'are being'} moved to {state.target}"
        advice = "finish that, or undo it with --abort and that address"
    elif not source.one(source.may_begin):
        found = "this role does not own the tables"
        advice = "run this as the role that owns the tables, as `tenure migrate` does"
    return problem("source", found, advice)


def _target(source: Source, target: Target) -> Check:
    state, mark, schema = source.state(), target.mark(), f"schema {target.address.schema}"
    found, advice = f"{schema} is {'new' if mark is None else f'a copy of {mark.source}'}", ""
    if mark is not None and not mark.is_of(source):
        advice = "finish that with its address, or undo it with --abort; or choose another schema"
    elif not target.one(RIGHTS):
        found = f"this role may not make {schema}"
        advice = "grant it CREATE on the database, or name another role"
    elif mark is None and target.tables and not (state is not None and state.moved):
        found = f"{schema} has tables"
        advice = "choose a database without Tenure, or another schema with ?schema=name"
    return problem("target", found, advice)


def _size(source: Source) -> Check:
    jobs, size = source.count(JOB), source.one(source.size) / 1e9
    found = f"{quantity(jobs, 'job')}, {size:.1f} GB with indexes and free space"
    advice = "the target needs as much space, and as much again for its log"
    return Check("size", CheckResult.OK, found, advice)
