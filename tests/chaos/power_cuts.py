"""Power cuts: a run of the real store, recorded at its disk, and what is left at any moment of it.

    python -m tests.chaos.power_cuts full|normal SEED ROUNDS FILE

records a run: two stores on one database file, as two processes would be, add, claim and settle
jobs, with a checkpoint every few commits. In FILE stand the calls to the disk, and after how many
of them each answer came. `Cut` then makes the files as a power cut after any call would leave them.
"""

from __future__ import annotations

import pickle
import random
import sqlite3
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tests.chaos.disk import Call, Disk

SECTOR = 512
"""Bytes that a disk writes whole."""
PAGES = 90
"""A checkpoint for about so many pages, so that a short run has many."""
NAME = "jobs.db"


class Fact(NamedTuple):
    """Something that was acknowledged: this move is in the ledger, with this lease."""

    after: int  # how many calls to the disk came before the answer
    job_id: str
    event: str
    lease_id: str | None


class Recording(NamedTuple):
    calls: list[Call]
    facts: list[Fact]
    checkpoints: list[tuple[int, int]]
    """From which call to which each checkpoint went."""


# --- recording ------------------------------------------------------------------------------------


def record(setting: str, chance: random.Random, rounds: int) -> Recording:
    """A run of `rounds` rounds; `setting` is what PRAGMA synchronous is set to."""
    if setting != "full":
        _weaken(setting)
    disk = Disk()
    from tenure.store import commit, open_store
    from tenure.store.sqlite import connection as sqlite_connection

    commit.CALM_SECONDS = 0  # so that single jobs are added on this thread
    commit.MAX_COMMITS = 5
    facts: list[Fact] = []
    checkpoints: list[tuple[int, int]] = []
    sqlite_connection.CHECKPOINT_PAGES = PAGES
    sqlite_connection.resets_wal_unsafely = lambda version: True

    really = sqlite_connection.Checkpoints.run

    def run(self: Any, connection: Any) -> None:
        before = len(disk.calls)
        really(self, connection)
        if len(disk.calls) > before:
            checkpoints.append((before, len(disk.calls)))

    sqlite_connection.Checkpoints.run = run  # type: ignore[method-assign]
    with TemporaryDirectory() as folder:
        stores = [open_store(f"sqlite:///{folder}/{NAME}") for _ in range(2)]
        for _ in range(rounds):
            _one_round(chance.choice(stores), chance, disk, facts)
        for store in stores:
            store.close()
    return Recording(disk.calls, facts, checkpoints)


def _weaken(setting: str) -> None:
    """Have connections that ask for FULL get `setting`."""
    from tenure.store.sqlite import connection as sqlite_connection

    really = sqlite3.connect

    class Weak(sqlite_connection.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            weaker = sql.replace("synchronous = FULL", f"synchronous = {setting}")
            return super().execute(weaker, *values)

    sqlite3.connect = lambda *args, **kw: really(  # type: ignore[assignment]
        *args, **kw | {"factory": Weak}
    )


def _one_round(store: Any, chance: random.Random, disk: Disk, facts: list[Fact]) -> None:
    """Jobs are added, some at once; others are claimed and settled."""
    from tenure.retry import RetryPolicy
    from tenure.rules.jobs import CheckedJob
    from tenure.rules.reports import ClaimRequest, Outcome, Report
    from tenure.values.ids import new_ids

    added: list[tuple[list[str], Future[Any]]] = []
    for _ in range(chance.randrange(3)):
        ids = new_ids(chance.choice((1, 1, 2, 20)))
        text = "x" * chance.choice((5, 500, 9_000))
        policy = RetryPolicy(base=0, factor=1, cap=0)
        payload = f'{{"a":"{text}"}}'
        jobs = [CheckedJob(id=id, type="t", payload=payload, backoff=policy) for id in ids]
        added.append((ids, store.add(jobs, waits=chance.random() < 0.5)))
    for ids, answer in added:
        answer.result()
        facts += [Fact(len(disk.calls), id, "enqueued", None) for id in ids]

    request = ClaimRequest(worker="w", limit=chance.choice((1, 5, 20)), lease_seconds=60)
    leases = store.exchange([], request).result().leases
    facts += [Fact(len(disk.calls), lease.id, "claimed", lease.lease_id) for lease in leases]
    reports = []
    for lease in leases:
        outcome = chance.choice((Outcome.COMPLETED, Outcome.COMPLETED, Outcome.FAILED))
        error = "broken" if outcome is Outcome.FAILED else ""
        reports.append(Report(lease.id, lease.lease_id, outcome, None, error=error))
    if reports:
        store.exchange(reports, None).result()
        told = [Fact(len(disk.calls), r.job_id, r.outcome, r.lease_id) for r in reports]
        facts += told


# --- cutting --------------------------------------------------------------------------------------


class Cut:
    """The files as the calls make them; asked in the order of the calls, so each is made once."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        self._done = 0
        self._lasting: dict[str, bytearray] = {}
        self._pending: dict[str, list[Call]] = {}
        self._in_folder: set[str] = set()  # journals and logs whose names are sure to last

    def leave(self, after: int, chance: random.Random, folder: Path) -> None:
        """Write into `folder` what a power cut after so many calls leaves.

        What was synced is there. Of what was not, each sector is or is not; where a file had grown,
        what is missing reads as zeros or as anything.
        """
        for call in self._calls[self._done : after]:
            self._take(call)
        self._done = after
        share = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        garbage = chance.random() < 0.5
        for name in sorted(self._lasting.keys() | self._pending.keys()):
            left = bytearray(self._lasting[name]) if name in self._lasting else None
            for call in self._pending.get(name, ()):
                left = _spoil(left, call, share, garbage, chance)
            if left is not None:
                (folder / name).write_bytes(left)

    def _take(self, call: Call) -> None:
        pending = self._pending.setdefault(call.file, [])
        pending.append(call)
        if call.kind == "delete":
            self._in_folder.discard(call.file)
        if call.kind != "sync":
            return
        content = self._lasting.pop(call.file, bytearray())
        for done in pending:
            if done.kind == "delete":
                content = bytearray()
            else:
                _apply(content, done)
        self._lasting[call.file] = content
        pending.clear()
        # With the first sync of a new journal or log SQLite syncs the folder as well.
        if call.file not in self._in_folder and call.file != NAME:
            self._in_folder.add(call.file)
            self._delete_for_good()

    def _delete_for_good(self) -> None:
        for name, pending in self._pending.items():
            deletes = [at for at, call in enumerate(pending) if call.kind == "delete"]
            if deletes:
                self._lasting.pop(name, None)
                del pending[: deletes[-1] + 1]


def _apply(content: bytearray, call: Call) -> None:
    if call.kind == "truncate":
        del content[call.offset :]
    elif call.kind == "write":
        if len(content) < call.offset:
            content.extend(bytes(call.offset - len(content)))
        content[call.offset : call.offset + len(call.data)] = call.data


def _spoil(
    left: bytearray | None, call: Call, share: float, garbage: bool, chance: random.Random
) -> bytearray | None:
    """What is left of a file when a call was not synced; None if the file is gone."""
    if call.kind == "delete":
        return None if chance.random() < share else left
    content = bytearray() if left is None else left
    if call.kind != "write":
        if chance.random() < share:
            _apply(content, call)
        return content
    end = call.offset + len(call.data)
    if len(content) < end and chance.random() < share:
        missing = end - len(content)
        content.extend(chance.randbytes(missing) if garbage else bytes(missing))
    at = call.offset
    while at < end:
        until = min(end, at - at % SECTOR + SECTOR)
        if chance.random() < share:
            part = call.data[at - call.offset : until - call.offset]
            _apply(content, Call(call.file, "write", at, part))
        at = until
    return content


def main() -> None:
    setting, seed, rounds, file = sys.argv[1:]
    from tests.chaos import power_cuts  # pickled by this name, not as `__main__`

    recording = power_cuts.record(setting, random.Random(seed), int(rounds))
    Path(file).write_bytes(pickle.dumps(recording))


if __name__ == "__main__":
    main()
