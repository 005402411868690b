"""Fill the disk under an SQLite file, here or as a process of its own, and look at what is kept.

python -m tests.chaos.disk_filling files_may_not_grow|small_file_system FOLDER
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from tenure import StoreUnavailable, Tenure
from tenure.rules.reports import ClaimRequest, Lease, Outcome, Report
from tests.support import fault_counts

BIG = {"text": "x" * 20_000}


def fill(app: Tenure, most: int = 2_000) -> list[str]:
    """Add jobs until one is refused; those that were accepted."""
    accepted = []
    for _ in range(most):
        try:
            accepted.append(app.enqueue("big", BIG).id)
        except StoreUnavailable:
            fault_counts.count("full disks and I/O errors")
            return accepted
    raise AssertionError("the disk did not fill up")


def claim(app: Tenure, limit: int) -> list[Lease]:
    request = ClaimRequest(worker="w", limit=limit, lease_seconds=3_600)
    return app.core.exchange([], request).result().leases


def settle(app: Tenure, leases: list[Lease]) -> None:
    reports = [Report(lease.id, lease.lease_id, Outcome.COMPLETED) for lease in leases]
    verdicts = app.core.exchange(reports, None).result().verdicts
    assert {verdict.answer for verdict in verdicts} <= {"recorded", "already_recorded"}


def check(app: Tenure, path: Path, accepted: list[str]) -> None:
    """All that was accepted is there, nothing else is, and the file is sound."""
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert {id for (id,) in plain.execute("SELECT id FROM tenure_job")} == set(accepted)
    assert app.verify() == []


def files_may_not_grow(folder: Path) -> None:
    """RLIMIT_FSIZE: writes beyond it fail, as they do on a full disk."""
    import resource

    path = folder / "jobs.db"
    with closing(Tenure(f"sqlite:///{path}")) as app:
        accepted = [app.enqueue("big", BIG).id]
        (running,) = claim(app, 1)
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, most))
        accepted += fill(app)
        # The log is full, not the database: it has been copied, so that it can be used again.
        settle(app, [running])
        assert app.core.prune({"completed": timedelta(0)}) == 1
        accepted = accepted[1:]
        accepted += fill(app)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        check(app, path, accepted)
        accepted.append(app.enqueue("big", BIG).id)
        check(app, path, accepted)


def small_file_system(folder: Path) -> None:
    """A file system that something else fills up, and then makes room again."""
    path, other = folder / "jobs.db", folder / "other"
    with closing(Tenure(f"sqlite:///{path}")) as app:
        accepted = [app.enqueue("big", BIG).id for _ in range(5)]
        running = claim(app, 5)
        other.write_bytes(bytes(shutil.disk_usage(folder).free // 2))
        accepted += fill(app)
        for lease in running:
            try:  # what a worker does: it reports until it has been answered
                settle(app, [lease])
            except StoreUnavailable:
                break
        other.unlink()
        settle(app, running)
        check(app, path, accepted)
        assert app.core.prune({"completed": timedelta(0)}) == 5
        accepted = accepted[5:]
        accepted.append(app.enqueue("big", BIG).id)
        check(app, path, accepted)


if __name__ == "__main__":
    act = {"files_may_not_grow": files_may_not_grow, "small_file_system": small_file_system}
    act[sys.argv[1]](Path(sys.argv[2]))
