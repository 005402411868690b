"""What the database refuses of several rows, while the other rows are written.

A trigger or a constraint that is not from Tenure may refuse a row, again each time. A duty that is
one transaction for many rows must not fail for all of them: `unless_refused` writes the others, and
`delete` deletes settled jobs with it.

A claim that was refused is made once more by one that is wary: it picks jobs, starts them as
`unless_refused` does, and notes where the refused ones are. Later claims look behind these places,
and only now and then at them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

from tenure import failpoints
from tenure.errors import StoreUnavailable, TenureError
from tenure.rules.reports import Lease
from tenure.store.database import Database, Statements, Trouble, answer_to
from tenure.telemetry.logs import Repeats
from tenure.values.text import quantity

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

MAX_TRIED = 64
"""Jobs that a wary claim tries in one look: of refused ones, each costs a few statements."""
TRY_ON = timedelta(seconds=1)
"""How long after a look that met refused jobs the next one behind them follows."""
TRY_AGAIN = timedelta(seconds=30)
"""How long after the last one the first refused job is tried again."""

Place = tuple[Any, str]
"""A time, as the database has it, and an id, as `lanes.Mark`."""
Partition = tuple[tuple[str, int], str]
"""A lane and a partition."""


def unless_refused(
    db: Database, write: Callable[[Sequence[T]], R], some: Sequence[T]
) -> tuple[list[R], list[tuple[T, TenureError]]]:
    """Call `write` with all of `some`; where the database refuses that, with each half of them.

    Returns the answers, and each item that is refused even alone, with its error: nothing of it is
    written. The transaction must not be undone to an earlier savepoint afterwards.
    """
    db.savepoint()
    try:
        return [write(some)], []
    except Exception as error:
        if isinstance(error, TenureError) and not isinstance(error, StoreUnavailable):
            refusal = error
        elif db.trouble(error) is Trouble.REFUSED:
            refusal = answer_to(Trouble.REFUSED, error)
        else:
            raise
    db.undo_to_savepoint()
    if len(some) == 1:
        return [], [(some[0], refusal)]
    half = len(some) // 2
    answers, refused = unless_refused(db, write, some[:half])
    more = unless_refused(db, write, some[half:])
    return answers + more[0], refused + more[1]


class Picked(NamedTuple):
    """A job to start; `key` is what its engine finds it by."""

    key: Any
    place: Place
    partition: str
    id: str


P = TypeVar("P", bound=Picked)


class RefusedClaims:
    """What a wary claim was refused. Of other claims it stays empty."""

    def __init__(self) -> None:
        self.jobs: list[tuple[str, TenureError]] = []
        self.upto: Place | None = None
        """The place of the last one that was refused in the last look."""

    @property
    def are_many(self) -> bool:
        return len(self.jobs) >= MAX_TRIED

    def start(
        self, db: Database, write: Callable[[Sequence[Picked]], list[Lease]], some: Sequence[Picked]
    ) -> tuple[list[Lease], list[Picked]]:
        """Start the jobs that the database lets start; return their leases, and the others."""
        self.upto = None
        leases, refused = unless_refused(db, write, some) if some else ([], [])
        self.jobs += [(one.id, error) for one, error in refused]
        if refused:
            self.upto = refused[-1][0].place
        return [lease for few in leases for lease in few], [one for one, _ in refused]

    def say(self, repeats: Repeats) -> None:
        """Log what was refused, unless that was said lately."""
        if self.jobs and repeats.is_due(self.jobs[0][1]):
            job_id, error = self.jobs[0]
            jobs = quantity(len(self.jobs), "pending job")
            log.warning("%s cannot be claimed, such as %s: %s", jobs, job_id, error)


class Floors:
    """Behind which places jobs of partitions are claimed, as long as refused ones are passed."""

    def __init__(self, most: int) -> None:
        """`most` partitions are remembered."""
        self._most = most
        self._places: MutableMapping[Partition, tuple[Place, datetime]] = {}

    def of(
        self, lane: tuple[str, int], partitions: Sequence[str], now: datetime
    ) -> Mapping[str, Place]:
        """Return the places in some partitions of a lane; leaves out those without one."""
        if not self._places:
            return {}
        found = {name: self._places.get((lane, name)) for name in partitions}
        return {name: it[0] for name, it in found.items() if it is not None and now < it[1]}

    def rise(self, lane: tuple[str, int], refused: Sequence[Picked], now: datetime) -> None:
        """Note the places of jobs that were refused."""
        if len(self._places) >= self._most:
            self._places.clear()
        for one in refused:
            _, until = self._places.get((lane, one.partition), (None, now))
            until = until if now < until else now + TRY_AGAIN
            self._places[lane, one.partition] = (one.place, until)


# --- deletion -------------------------------------------------------------------------------------

Kind: TypeAlias = tuple[str, str, str]
"""Status, queue and type of jobs."""
Refused: TypeAlias = Sequence[tuple[Any, TenureError]]
"""Jobs (id, status, queue, type) that the database refused to delete, each with its error."""


def delete(db: Database, jobs: Sequence[Any]) -> tuple[Counter[Kind], Refused]:
    """Delete jobs (id, status, queue, type), and what belongs to them.

    Returns how many of a status, queue and type were deleted, and what the database refused.
    """
    some, refused = unless_refused(db, partial(_delete, db), jobs) if jobs else ([], [])
    return sum(some, Counter()), refused


def _delete(db: Statements, jobs: Sequence[Any]) -> Counter[Kind]:
    d = db.dialect
    ids = [id for id, *_ in jobs]
    among = d.ids(len(ids))
    for name in ("job", "transition", "trace", "progress"):
        column = "id" if name == "job" else "job_id"
        db.changed(f"DELETE FROM {d.table(name)} WHERE {column} IN ({among})", ids)
        failpoints.hit("prune.between_job_and_ledger")
    return Counter((status, queue, type) for _, status, queue, type in jobs)
