"""`tenure move`: copy, catch up, compare, switch.

1. `Source.begin` has triggers note which rows change. No other database has such triggers.
2. All jobs are copied in the order of their ids, in many transactions.
3. Rounds copy what has changed meanwhile, each as of one state of the source.
4. After one round all rows of both databases are compared, and the copy is verified. What is copied
   later is read again and compared at once. Before the switch, one more round counts all rows.
5. A lock keeps all others from writing to the source; the last changes are copied; the source
   refuses every write from then on and says where the jobs are. With that commit they are on the
   target. What takes longer with more jobs, or waits for others, is done before that lock.

It can be killed anywhere and continues from there: the target has the copies and how far they go,
and the source forgets a change only after its copy.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from sqlite3 import Error as SqliteError

from tenure import failpoints
from tenure.errors import InvalidInput, MoveRefused, StoreUnavailable
from tenure.settings import is_sqlite
from tenure.store import open_store, schema_of
from tenure.store.database import ELSEWHERE
from tenure.store.doctor import problem
from tenure.store.moving import sides
from tenure.store.moving.target import PLACED, Mark, Target
from tenure.values.findings import Check, CheckResult, Progress, no_note, no_progress
from tenure.values.ids import BEFORE_ALL
from tenure.values.redaction import without_password
from tenure.values.text import quantity

# The imports above say what to do where psycopg is missing.
# isort: split
from psycopg import Error as PostgresError

JOBS_AT_ONCE = 5_000
CHANGES_AT_ONCE = 20_000
SHORT_SECONDS = 0.4
"""A round that took no longer is followed by the switch."""
LONG_SECONDS = 1.2
"""The same, once rounds come no closer: on a busy machine none may be shorter."""
MAX_ROUNDS = 20
"""So many in a row come no closer if no fewer changes are left than before them."""
WITH_JOBS = [table.name for table in (sides.JOB, *sides.OF_JOBS)]

GONE = ELSEWHERE + "the jobs were moved to {target}; start the programs again with that address"
NOT_YET = ELSEWHERE + "the jobs are still in {source}; `tenure move` copies them here"

Note = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Mover:
    """Moves the jobs of a source to a target, or continues to."""

    source: sides.Source
    target: Target
    progress: Progress = no_progress
    note: Note = no_note
    """Called with a sentence about each thing that is done."""

    def run(self) -> None:
        """Move. Raises MoveRefused."""
        state, mark = self.source.state(), self.target.mark()
        if state is not None and state.moved:
            if mark is None:
                raise MoveRefused(f"the jobs were moved to {state.target} before")
            self._open()
            return
        if state is None or mark is None or mark.id != state.id:
            mark = self._begin(is_copy=mark is not None)
        else:
            self.note(f"continuing after job {mark.copied_to}")
        self.source.types = self.target.types = self.target.tables
        if not mark.compared:
            mark = self._copy_all(mark)
            self._catch_up()
            self._compare()
            self.target.set_mark(mark._replace(compared=True))
        self.target.checks = True
        self._catch_up()
        self._count()
        self._catch_up()
        began = self._switch()
        self._open(began)

    def abort(self) -> None:
        """Undo what was made on both sides. Raises MoveRefused after the switch, if one of them
        belongs to another move, or if a transaction of others does not end."""
        state, mark = self.source.state(), self.target.mark()
        if state is not None and state.moved:
            raise MoveRefused(f"the jobs are in {state.target}: nothing can be undone any more")
        if state is not None and state.target != self.target.name:
            raise MoveRefused(f"the jobs are being moved to {state.target}: undo it with that")
        if mark is not None and not mark.is_of(self.source):
            raise MoveRefused(f"there is a copy of {mark.source}: undo it with that")
        self.source.forsake(self.target.name)
        if mark is not None:
            self.target.drop()

    def _begin(self, *, is_copy: bool) -> Mark:
        mark = Mark(secrets.token_hex(8), self.source.name, BEFORE_ALL, compared=False)
        if is_copy:
            self.target.drop()
        self.target.create(mark, NOT_YET.format(source=self.source.name))
        self.source.types = self.target.tables
        try:
            self.source.begin(sides.Destination(mark.id, self.target.name, moved=False))
        except MoveRefused:  # as of another move that began meanwhile
            self.target.drop()
            raise
        failpoints.hit("move.after_begin")
        return mark

    # --- copying

    def _copy_all(self, mark: Mark) -> Mark:
        if mark.copied_to == BEFORE_ALL:
            for table in sides.ALONE:
                with self.source.snapshot(), self.target.copying([table.name]):
                    self.target.copy_rows(self.source, table)
        total, done = self.source.count(sides.JOB), self.target.count(sides.JOB)
        while True:
            self.progress(done, max(total, done), "copying jobs")
            with self.source.snapshot():
                ids = self.source.job_ids(mark.copied_to, JOBS_AT_ONCE)
                mark = mark._replace(copied_to=ids[-1] if ids else mark.copied_to)
                with self.target.copying(WITH_JOBS):
                    self.target.copy_jobs(self.source, ids)
                    self.target.set_mark(mark)
            done += len(ids)
            if len(ids) < JOBS_AT_ONCE:  # jobs that came since `begin` are among the changes
                return mark

    def _catch_up(self) -> None:
        """Copy what has changed until a round is so short that the next one can be the last."""
        least, since = sys.maxsize, 0
        while since < 2 * MAX_ROUNDS:
            left = self.source.changed()
            least, since = min(left, least), 0 if left < least else since + 1
            self.progress(left, None, "changes to catch up with")
            began = time.monotonic()
            with self._same(CHANGES_AT_ONCE) as changes:
                pass
            enough = SHORT_SECONDS if since < MAX_ROUNDS else LONG_SECONDS
            if len(changes) < CHANGES_AT_ONCE and time.monotonic() - began < enough:
                return
        raise MoveRefused(
            f"rows change faster than they are copied, {left} are left. Reduce"
            " the load, for example by `tenure queues pause`, and run the same command again"
        )

    @contextmanager
    def _same(
        self, limit: int = sys.maxsize, *, place: bool = False
    ) -> Iterator[Sequence[sides.Change]]:
        """Copy what has changed; without a limit, both have the same rows in the block."""
        with self.source.snapshot():
            changes = self.source.changes(limit)
            changed = {name for _, name, _ in changes}
            follow = WITH_JOBS if changed & {sides.JOB.name, "queue_limit"} else ()
            with self.target.copying({*changed, *follow, *(PLACED if place else ())}):
                self._copy(changes, place=place)
            yield changes
        self.source.forget(changes)

    def _copy(self, changes: Sequence[sides.Change], *, place: bool = False) -> None:
        """In `copying`: copy rows that have changed, and the places in the ledger."""
        keys: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for _, name, key in changes:
            keys[name][key] = None
        ids = {json.loads(key)[0] for key in keys.pop(sides.JOB.name, ())}
        for key in keys.get("queue_limit", ()):  # by it follows more from these jobs, or less
            ids.update(self.source.open_jobs(*json.loads(key)))
        for table in sides.ALONE:
            if table.name in keys:
                self.target.copy_rows(self.source, table, f"[{','.join(keys[table.name])}]")
        ordered = sorted(ids)
        for at in range(0, len(ordered), JOBS_AT_ONCE):
            self.target.copy_jobs(self.source, ordered[at : at + JOBS_AT_ONCE])
        if place:
            self.target.place(self.source)

    def _compare(self) -> None:
        """Make the target equal to one state of the source, compare all rows, and verify it."""
        with self._same(place=True):
            for done, table in enumerate(sides.COPIED):
                self.progress(done, len(sides.COPIED), f"comparing {table.name}")
                here = sides.digest(self.source.read(table))
                with self.target.transaction():
                    there = sides.digest(self.target.read(table))
                if here != there:
                    raise MoveRefused(f"{table.name} differs: {here} here, {there} there")
                if not here.startswith("0 "):
                    self.note(f"{table.name}: the same {here}")
        self.progress(0, None, "verifying the copy")
        if violations := _violations(self.target.url):
            raise MoveRefused(
                f"`tenure verify` finds {quantity(len(violations), 'violation')} there, the first: "
                f"{violations[0]}. See whether the source has them"
            )
        self.note("the copy is verified: no violation")

    def _count(self) -> None:
        """See that both have as many rows: later ones that no trigger noted are not copied."""
        self.progress(0, None, "counting rows")
        with self._same(place=True):
            for table in (sides.JOB, *sides.ALONE):
                here, there = self.source.count(table), self.target.count(table)
                if here != there:
                    raise MoveRefused(f"{table.name} has {here} rows here and {there} there")

    # --- the switch

    def _switch(self) -> float:
        """Close the source for good; return the time since which writes wait."""
        self.progress(0, None, "switching")
        failpoints.hit("move.before_switch")
        with ExitStack() as copy:
            copy.enter_context(
                self.target.copying({*PLACED, *(table.name for table in sides.COPIED)})
            )
            with self.source.closed():
                began = time.monotonic()
                self._copy(self.source.changes(), place=True)
                copy.close()
                self.source.hand_over(GONE.format(target=self.target.name))
                failpoints.hit("move.in_switch")
        failpoints.hit("move.after_switch")
        return began

    def _open(self, began: float | None = None) -> None:
        self.target.open()
        if began is not None:
            self.note(f"writes waited for {time.monotonic() - began:.1f} s")
        self.note(f"the jobs are in {self.target.name}")


def _violations(url: str) -> list[str]:
    store = open_store(url, make=False)
    try:
        return [": ".join(found) for found in store.read.violations(100)]
    finally:
        store.close()


# --- checks ---------------------------------------------------------------------------------------

ALONE_SECONDS = 10.0
RIGHTS = """
SELECT CASE WHEN to_regnamespace('{s}') IS NULL
    THEN has_database_privilege(current_database(), 'CREATE')
    ELSE (SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace
        WHERE oid = to_regnamespace('{s}'))
END"""


@contextmanager
def opened(source: str, target: str) -> Iterator[tuple[sides.Source, Target]]:
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
        of = sides.SqliteSource if is_sqlite(source) else sides.PostgresSource
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


def check(source: sides.Source, target: Target) -> list[Check]:
    """Return what would stop moving, and how much there is to move."""
    return [
        _versions(source, target),
        _source(source, target),
        _target(source, target),
        _size(source),
    ]


def _versions(source: sides.Source, target: Target) -> Check:
    (found, needed), (there, needed_there) = schema_of(source.url), schema_of(target.url)
    if found != needed or there not in (0, needed_there):
        advice = "use the same version of Tenure on both, and run `tenure migrate` before"
        return problem("versions", f"schema {found} and {there}", advice)
    return problem("versions", f"schema {found}, as this program needs", "")


def _source(source: sides.Source, target: Target) -> Check:
    state, advice = source.state(), ""
    found = "its jobs can be moved" if state is None else "its jobs are being moved"
    if state is not None and state.target != target.name:
        found = f"its jobs {'were' if state.moved else 'are being'} moved to {state.target}"
        advice = "finish that, or undo it with --abort and that address"
    elif not source.one(source.may_begin):
        found = "this role does not own the tables"
        advice = "run this as the role that owns the tables, as `tenure migrate` does"
    return problem("source", found, advice)


def _target(source: sides.Source, target: Target) -> Check:
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


def _size(source: sides.Source) -> Check:
    jobs, size = source.count(sides.JOB), source.one(source.size) / 1e9
    found = f"{quantity(jobs, 'job')}, {size:.1f} GB with indexes and free space"
    advice = "the target needs as much space, and as much again for its log"
    return Check("size", CheckResult.OK, found, advice)
