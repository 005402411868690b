"""`tenure move`: copy, catch up, compare, switch.

1. `Source.begin` has triggers note which rows change. No other database has such triggers.
2. All jobs are copied in the order of their ids, in many transactions.
3. Rounds copy what has changed meanwhile, each as of one state of the source.
4. After one round all rows of both databases are compared, and the copy is verified. What is copied
   later is read again and compared at once.
5. A lock keeps all others from writing to the source; the last changes are copied; the source
   refuses every write from then on and says where the jobs are. With that commit they are on the
   target.

It can be killed anywhere and continues from there: the target has the copies and how far they go,
and the source forgets a change only after its copy.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from tenure import failpoints
from tenure.errors import MoveRefused
from tenure.jobs.findings import Progress, no_note, no_progress
from tenure.store import open_store
from tenure.store.moving.sides import Change, Destination, Source, digest
from tenure.store.moving.tables import ALONE, COPIED, JOB, OF_JOBS
from tenure.store.moving.target import BEGINNING, PLACED, Mark, Target
from tenure.store.protocol import ELSEWHERE

JOBS_AT_ONCE = 5_000
CHANGES_AT_ONCE = 20_000
SHORT_SECONDS = 0.4
"""A round that took no longer is followed by the switch."""
LONG_SECONDS = 1.2
"""The same, once rounds come no closer: on a busy machine none may be shorter."""
MAX_ROUNDS = 20
"""So many in a row come no closer if no fewer changes are left than before them."""
WITH_JOBS = [table.name for table in (JOB, *OF_JOBS)]

GONE = ELSEWHERE + "they were moved to {target}; start the programs again with that address"
NOT_YET = ELSEWHERE + "they are still in {source}; `tenure move` copies them here"

Note = Callable[[str], object]


class Mover:
    """Moves the jobs of a source to a target, or continues to."""

    def __init__(
        self, source: Source, target: Target, progress: Progress = no_progress, note: Note = no_note
    ) -> None:
        """`note` is called with a sentence about each thing that is done."""
        self._source = source
        self._target = target
        self._progress = progress
        self._note = note

    def run(self) -> None:
        """Move. Raises MoveRefused."""
        state, mark = self._source.state(), self._target.mark()
        if state is not None and state.moved:
            if mark is None:
                raise MoveRefused(f"the jobs were moved to {state.target} before")
            self._open()
            return
        if state is None or mark is None or mark.id != state.id:
            mark = self._begin(is_copy=mark is not None)
        else:
            self._note(f"continuing after job {mark.copied_to}")
        self._source.types = self._target.types = self._target.tables
        if not mark.compared:
            mark = self._copy_all(mark)
            self._catch_up()
            self._compare()
            self._target.set_mark(mark._replace(compared=True))
        self._target.checks = True
        self._catch_up()
        began = self._switch()
        self._open(began)

    def abort(self) -> None:
        """Undo what was made on both sides. Raises MoveRefused after the switch."""
        state = self._source.state()
        if state is not None and state.moved:
            raise MoveRefused(f"the jobs are in {state.target}: nothing can be undone any more")
        self._source.forsake()
        if self._target.mark() is not None:
            self._target.drop()

    def _begin(self, *, is_copy: bool) -> Mark:
        mark = Mark(secrets.token_hex(8), BEGINNING, compared=False)
        if is_copy:
            self._target.drop()
        self._target.create(mark, NOT_YET.format(source=self._source.name))
        self._source.types = self._target.tables
        self._source.begin(Destination(mark.id, self._target.name, moved=False))
        failpoints.hit("move.after_begin")
        return mark

    # --- copying

    def _copy_all(self, mark: Mark) -> Mark:
        if mark.copied_to == BEGINNING:
            for table in ALONE:
                with self._source.snapshot(), self._target.copying([table.name]):
                    self._target.copy_rows(self._source, table)
        total, done = self._source.count(JOB), self._target.count(JOB)
        while True:
            self._progress(done, max(total, done), "copying jobs")
            with self._source.snapshot():
                ids = self._source.job_ids(mark.copied_to, JOBS_AT_ONCE)
                mark = mark._replace(copied_to=ids[-1] if ids else mark.copied_to)
                with self._target.copying(WITH_JOBS):
                    self._target.copy_jobs(self._source, ids)
                    self._target.set_mark(mark)
            done += len(ids)
            if len(ids) < JOBS_AT_ONCE:  # jobs that came since `begin` are among the changes
                return mark

    def _catch_up(self) -> None:
        """Copy what has changed until a round is so short that the next one can be the last."""
        least, since = sys.maxsize, 0
        while since < 2 * MAX_ROUNDS:
            left = self._source.changed()
            least, since = min(left, least), 0 if left < least else since + 1
            self._progress(left, None, "changes to catch up with")
            began = time.monotonic()
            with self._source.snapshot():
                changes = self._source.changes(CHANGES_AT_ONCE)
                self._copy(changes)
            self._source.forget(changes)
            enough = SHORT_SECONDS if since < MAX_ROUNDS else LONG_SECONDS
            if len(changes) < CHANGES_AT_ONCE and time.monotonic() - began < enough:
                return
        raise MoveRefused(
            f"rows change faster than they are copied, {left} are left. Reduce"
            " the load, for example by `tenure queues pause`, and run the same command again"
        )

    def _copy(self, changes: Sequence[Change], *, place: bool = False) -> None:
        """Copy rows that have changed, in one transaction, and the places in the ledger."""
        keys: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for _, name, key in changes:
            keys[name][key] = None
        ids = {json.loads(key)[0] for key in keys.pop(JOB.name, ())}
        for key in keys.get("queue_limit", ()):  # by it follows more from these jobs, or less
            ids.update(self._source.open_jobs(*json.loads(key)))
        tables = {*keys, *(WITH_JOBS if ids else ()), *(PLACED if place else ())}
        with self._target.copying(tables):
            for table in ALONE:
                if table.name in keys:
                    changed = f"[{','.join(keys[table.name])}]"
                    self._target.copy_rows(self._source, table, changed)
            ordered = sorted(ids)
            for at in range(0, len(ordered), JOBS_AT_ONCE):
                some = ordered[at : at + JOBS_AT_ONCE]
                self._target.copy_jobs(self._source, some)
            if place:
                self._target.place(self._source)

    def _compare(self) -> None:
        """Make the target equal to one state of the source, compare all rows, and verify it."""
        with self._source.snapshot():
            changes = self._source.changes()
            self._copy(changes, place=True)
            for done, table in enumerate(COPIED):
                self._progress(done, len(COPIED), f"comparing {table.name}")
                here = digest(self._source.read(table))
                with self._target.transaction():
                    there = digest(self._target.read(table))
                if here != there:
                    raise MoveRefused(f"{table.name} differs: {here} here, {there} there")
                if not here.startswith("0 "):
                    self._note(f"{table.name}: the same {here}")
        self._source.forget(changes)
        self._progress(0, None, "verifying the copy")
        if violations := _violations(self._target.url):
            raise MoveRefused(
                f"`tenure verify` finds {len(violations)} violations there, the first: "
                f"{violations[0]}. See whether the source has them"
            )
        self._note("the copy is verified: no violation")

    # --- the switch

    def _switch(self) -> float:
        """Close the source for good; return the time since which writes wait."""
        self._progress(0, None, "switching")
        failpoints.hit("move.before_switch")
        with self._source.closed():
            began = time.monotonic()
            self._copy(self._source.changes(), place=True)
            for table in (JOB, *ALONE):
                here, there = self._source.count(table), self._target.count(table)
                if here != there:
                    raise MoveRefused(f"{table.name} has {here} rows here and {there} there")
            self._source.hand_over(GONE.format(target=self._target.name))
            failpoints.hit("move.in_switch")
        failpoints.hit("move.after_switch")
        return began

    def _open(self, began: float | None = None) -> None:
        self._target.open()
        if began is not None:
            self._note(f"writes waited for {time.monotonic() - began:.1f} s")
        self._note(f"the jobs are in {self._target.name}")


def _violations(url: str) -> list[str]:
    store = open_store(url, make=False)
    try:
        return [": ".join(found) for found in store.read.violations(100)]
    finally:
        store.close()
