"""The disk under SQLite is full: nothing is half stored, and with room again all goes on."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tenure import StoreUnavailable, Tenure
from tenure.records import ClaimRequest, Lease, Outcome, Report
from tests.chaos import tally
from tests.faces.http import api_of, problem

pytestmark = [pytest.mark.chaos, pytest.mark.scenario(47)]
ROOT = Path(__file__).parents[2]
BIG = {"text": "x" * 20_000}


def fill(app: Tenure, most: int = 2_000) -> list[str]:
    """Add jobs until one is refused; those that were accepted."""
    accepted = []
    for _ in range(most):
        try:
            accepted.append(app.enqueue("big", BIG).id)
        except StoreUnavailable:
            tally.count("full disks and I/O errors")
            return accepted
    raise AssertionError("the disk did not fill up")


def claim(app: Tenure, limit: int) -> list[Lease]:
    request = ClaimRequest(worker="w", limit=limit, lease_seconds=3_600)
    return app.turn([], request).result().leases


def settle(app: Tenure, leases: list[Lease]) -> None:
    reports = [Report(lease.id, lease.lease_id, Outcome.COMPLETED) for lease in leases]
    verdicts = app.turn(reports, None).result().verdicts
    assert {verdict.answer for verdict in verdicts} <= {"recorded", "already_recorded"}


def check(app: Tenure, path: Path, accepted: list[str]) -> None:
    """All that was accepted is there, nothing else is, and the file is sound."""
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert {id for (id,) in plain.execute("SELECT id FROM tenure_job")} == set(accepted)
    assert app.verify() == []


@contextmanager
def limited(app: Tenure, pages: int) -> Iterator[None]:
    """The database may not grow by more than `pages` pages."""
    held = app._store._committer._databases[0]  # type: ignore[attr-defined,union-attr]
    connection = held._connection
    (now,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {now + pages}")
    try:
        yield
    finally:
        connection.execute("PRAGMA max_page_count = 1073741823")


def test_a_database_that_may_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with closing(Tenure(f"sqlite:///{path}")) as app:
        first = app.enqueue("big", BIG)
        (running,) = claim(app, 1)
        with limited(app, 400):
            accepted = [first.id, *fill(app)]
            with api_of(app) as api:
                body = {"type": "big", "payload": BIG}
                problem(api.post("/jobs", json=body), 503, "store_unavailable")
            check(app, path, accepted)
            for id in accepted[1:]:  # an operator makes room, with the disk still full
                app.cancel(id)
                break
            settle(app, [running])
            gone = 0
            while gone < 2:  # of this very millisecond they are not old enough
                gone += app.prune({"completed": timedelta(0), "cancelled": timedelta(0)})
            assert gone == 2
            again = app.enqueue("big", BIG)
        check(app, path, [*accepted[2:], again.id])
        assert app.enqueue("big", BIG)


# --- a child whose files may not grow, or whose file system is small -----------------------------

CHILD = """
import sys
from pathlib import Path
from tests.chaos import test_full_disk
test_full_disk.{name}(Path(sys.argv[1]))
"""


def in_child(name: str, folder: Path, *before: str) -> subprocess.CompletedProcess[str]:
    code = CHILD.format(name=name)
    return subprocess.run(
        [*before, sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )


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
        assert app.prune({"completed": timedelta(0)}) == 1
        accepted = accepted[1:]
        accepted += fill(app)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        check(app, path, accepted)
        accepted.append(app.enqueue("big", BIG).id)
        check(app, path, accepted)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no RLIMIT_FSIZE")
def test_files_that_may_not_grow(tmp_path: Path) -> None:
    done = in_child("files_may_not_grow", tmp_path)
    assert done.returncode == 0, done.stderr[-3_000:]


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
        assert app.prune({"completed": timedelta(0)}) == 5
        accepted = accepted[5:]
        accepted.append(app.enqueue("big", BIG).id)
        check(app, path, accepted)


def test_a_small_file_system(tmp_path: Path) -> None:
    mount = "mount -t tmpfs -o size=2m none"
    tried = shutil.which("unshare") and subprocess.run(
        ["unshare", "-Urm", "sh", "-c", f"{mount} {tmp_path}"], check=False, capture_output=True
    )
    if not tried or tried.returncode:
        pytest.skip("no mount namespaces for this user: allow `unshare -Urm mount -t tmpfs`")
    done = in_child(
        "small_file_system",
        tmp_path,
        *("unshare", "-Urm", "sh", "-c", f'{mount} {tmp_path} && exec "$@"', "sh"),
    )
    assert done.returncode == 0, done.stderr[-3_000:]
