"""`tenure move`: has the store move all jobs from one database to another."""

from __future__ import annotations

from tenure.errors import MoveRefused
from tenure.store.moving.mover import Mover, Note, opened
from tenure.store.moving.mover import check as check_sides
from tenure.values.findings import Check, CheckResult, Progress


def move(source: str, target: str, progress: Progress, note: Note) -> None:
    """Move all jobs to another database, which has none, while workers continue.

    - `source`: the URL of the database that the jobs leave.
    - `target`: the URL of a PostgreSQL database in which the schema does not exist yet.
    - `progress`: called as `progress(done, total, what)`.
    - `note`: called with a sentence about each thing that is done.

    Continues where an earlier call stopped. Raises MoveRefused, InvalidInput, StoreUnavailable
    and SchemaMismatch.
    """
    with opened(source, target) as sides:
        for found in check_sides(*sides):
            if found.health is CheckResult.PROBLEM:
                raise MoveRefused(f"{found.name}: {found.found}. {found.advice}")
        Mover(*sides, progress, note).run()


def check_move(source: str, target: str) -> list[Check]:
    """Return what would stop `move`, and how much there is to move. Changes nothing."""
    with opened(source, target) as sides:
        return check_sides(*sides)


def abort(source: str, target: str) -> None:
    """Undo on both sides what `move` has made.

    Raises MoveRefused after the switch, or if a transaction of others does not end.
    """
    with opened(source, target) as sides:
        Mover(*sides).abort()
