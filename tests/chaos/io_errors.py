"""I/O errors: the store, and a disk that fails at its n-th call. Run in a process of its own.

    python -m tests.chaos.io_errors KIND once|for-good FIRST STEP FOLDER

For n = FIRST, FIRST + STEP and so on, a store adds, claims, settles and prunes jobs on a fresh file
while the n-th call of KIND fails (`for-good`: and every one after it, until the disk is repaired),
until a run needs fewer calls. Prints how many runs there were; a complaint ends the process with 1.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.chaos.disk import Disk

disk = Disk(remember=False)

from tenure.errors import StoreUnavailable  # noqa: E402
from tenure.rules.jobs import CheckedJob  # noqa: E402
from tenure.rules.reports import ClaimRequest, Outcome, Report  # noqa: E402
from tenure.store import Store, commit, open_store  # noqa: E402
from tenure.store.sqlite import connection as sqlite_connection  # noqa: E402
from tenure.values.ids import new_ids  # noqa: E402

sqlite_connection.CHECKPOINT_PAGES = 40  # so that there is one in a short run
sqlite_connection.resets_wal_unsafely = lambda version: True
commit.CALM_SECONDS = 0  # so that a job alone is added on this thread
ROUNDS = 6
CLAIM = ClaimRequest(worker="w", limit=4, lease_seconds=600)


class LedgerEvent:
    """What callers were told: the moves that were acknowledged, and whether anything failed."""

    def __init__(self) -> None:
        self.transitions: set[tuple[str, str]] = set()
        self.errors = 0

    def ask(self, call: Callable[[], Any]) -> Any:
        """The answer; None for the one error that callers are promised."""
        try:
            return call()
        except StoreUnavailable:
            self.errors += 1
            return None


def one_life(store: Store, told: LedgerEvent) -> None:
    """Add four jobs, claim and report what there is."""
    ids = new_ids(4)
    jobs = [CheckedJob(id=id, type="t", payload='{"text":"%s"}' % ("x" * 3_000)) for id in ids]
    if told.ask(lambda: store.add(jobs[:3]).result()):
        told.transitions |= {(id, "enqueued") for id in ids[:3]}
    if told.ask(lambda: store.add(jobs[3:], waits=True).result()):
        told.transitions.add((ids[3], "enqueued"))
    exchange = told.ask(lambda: store.exchange([], CLAIM).result())
    if not exchange or not exchange.leases:
        return
    told.transitions |= {(lease.id, "claimed") for lease in exchange.leases}
    reports = [Report(lease.id, lease.lease_id, Outcome.COMPLETED) for lease in exchange.leases]
    if answer := told.ask(lambda: store.exchange(reports, None).result()):
        assert {verdict.answer for verdict in answer.verdicts} == {"recorded"}
        told.transitions |= {(lease.id, "completed") for lease in exchange.leases}


def run(kind: str, number: int, for_good: bool, folder: Path) -> bool:
    """One run in which call `number` fails; whether it came so far."""
    url = f"sqlite:///{folder}/jobs.db"
    told = LedgerEvent()
    disk.fail([kind], number, for_good=for_good)
    store = told.ask(lambda: open_store(url))
    if store is None:
        disk.repair()
        store = open_store(url)
    for _ in range(ROUNDS):
        one_life(store, told)
    disk.repair()
    failed = disk.failed

    healthy = LedgerEvent()  # the same store, without a restart
    one_life(store, healthy)
    one_life(store, healthy)
    assert healthy.errors == 0, "the disk was repaired, the store was not"
    assert any(event == "completed" for _, event in healthy.transitions)

    with closing(sqlite3.connect(folder / "jobs.db")) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        known = set(plain.execute("SELECT job_id, event FROM tenure_transition"))
    assert told.transitions | healthy.transitions <= known, "acknowledged, and not there"
    assert store.read.violations(5) == []
    store.close()
    return failed > 0


def main() -> None:
    kind, how, first, step, place = sys.argv[1:]
    runs = 0
    for number in range(int(first), 100_000, int(step)):
        folder = Path(place) / str(number)
        folder.mkdir()
        try:
            came_so_far = run(kind, number, how == "for-good", folder)
        except BaseException:
            print(f"{kind} {number} {how}", flush=True)
            raise
        shutil.rmtree(folder)
        if not came_so_far:
            break
        runs += 1
    print(runs)


if __name__ == "__main__":
    main()
