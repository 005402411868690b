"""`tenure move`: has the store move all jobs from one database to another."""

from __future__ import annotations

from collections.abc import Callable

from tenure.errors import MoveRefused
from tenure.jobs.findings import Check, CheckResult, Progress
from tenure.jobs.redaction import without_password
from tenure.store import open_store


def move(source: str, target: str, progress: Progress, note: Callable[[str], object]) -> None:
    """Move all jobs from one database to another, which has none, while work goes on.

    - `source`: the URL of the database that the jobs leave.
    - `target`: the URL of a PostgreSQL database in which the schema does not exist yet.
    - `progress`: called as `progress(done, total, what)`.
    - `note`: called with a sentence about each thing that is done.

    Goes on with what an earlier call has done. Raises MoveRefused, InvalidInput, StoreUnavailable
    and SchemaMismatch.
    """
    from tenure.store.moving import checks
    from tenure.store.moving.mover import Mover

    with checks.opened(source, target) as (source_side, target_side):
        for found in checks.check(source_side, target_side, (source, target)):
            if found.health is CheckResult.PROBLEM:
                raise MoveRefused(f"{found.name}: {found.found}. {found.advice}")
        mover = Mover(source_side, target_side, progress, note)
        names = (without_password(source), without_password(target))
        mover.run(names, target, lambda: _violations(target))


def check(source: str, target: str) -> list[Check]:
    """Return what would stop `move`, and how much there is to move. Changes nothing."""
    from tenure.store.moving import checks

    with checks.opened(source, target) as (source_side, target_side):
        return checks.check(source_side, target_side, (source, target))


def abort(source: str, target: str) -> None:
    """Undo on both sides what `move` has made. Raises MoveRefused after the switch."""
    from tenure.store.moving import checks
    from tenure.store.moving.mover import Mover

    with checks.opened(source, target) as (source_side, target_side):
        Mover(source_side, target_side, lambda *_: None, lambda _: None).abort()


def _violations(url: str) -> list[str]:
    store = open_store(url, make=False)
    try:
        return [": ".join(found) for found in store.read.violations(100)]
    finally:
        store.close()
