"""The disk under SQLite is full: nothing is half stored, and with room again all goes on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tenure import NewJob, Tenure, store
from tests.chaos.disk_filling import BIG, check, claim, fill, settle
from tests.support.http import api_client, assert_problem
from tests.support.programs import run
from tests.support.raw_sql import RawSql
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.scenario(47)]
ROOT = Path(__file__).parents[2]


@contextmanager
def limited(app: Tenure, pages: int) -> Iterator[None]:
    """The database may not grow by more than `pages` pages."""
    committer = app.core.store._committer  # type: ignore[union-attr]
    databases: list[Any] = [*committer._databases, *committer._direct._free]
    connections = [db._connection for db in databases if db._connection is not None]
    (now,) = connections[0].execute("PRAGMA page_count").fetchone()
    for connection in connections:
        connection.execute(f"PRAGMA max_page_count = {now + pages}")
    try:
        yield
    finally:
        for connection in connections:
            connection.execute("PRAGMA max_page_count = 1073741823")


def test_a_database_that_may_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with closing(Tenure(f"sqlite:///{path}")) as app:
        app.job(name="big")(lambda **_: None)  # else the look for it keeps callers off the file
        first = app.enqueue("big", BIG)
        (running,) = claim(app, 1)
        with limited(app, 400):
            accepted = [first.id, *fill(app)]
        with limited(app, 4):  # a large job takes five: there is room for a few small rows
            with api_client(app) as api:
                body = {"type": "big", "payload": BIG}
                assert_problem(api.post("/jobs", json=body), 503, "store_unavailable")
            check(app, path, accepted)
            app.cancel(accepted[1])  # an operator makes room, with the disk still full
            settle(app, [running])
            gone = 0
            while gone < 2:  # of this very millisecond they are not old enough
                gone += app.core.prune({"completed": timedelta(0), "cancelled": timedelta(0)})
            assert gone == 2
            again = app.enqueue("big", BIG)
        check(app, path, [*accepted[2:], again.id])
        assert app.enqueue("big", BIG)


NO_ROOM = (
    "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE 'could not extend file' USING ERRCODE = 'disk_full'; END $$",
    "CREATE TRIGGER no_room BEFORE INSERT ON {job} FOR EACH STATEMENT EXECUTE FUNCTION no_room()",
)


@contextmanager
def full(app: Tenure) -> Iterator[None]:
    """The disk of the database has no room for another large job."""
    if app.database.startswith("sqlite"):
        app.job(name="big")(lambda **_: None)
        app.enqueue("big")
        app.enqueue_many([NewJob("big", {}, {})] * 2)  # both of its writers have a connection
        with limited(app, 0):
            yield
        return
    with closing(RawSql(app.database)) as raw:
        for statement in NO_ROOM:
            raw.run(statement)
        yield
        raw.run("DROP TRIGGER no_room ON {job}")


def test_a_server_whose_disk_is_full_is_not_ready_and_says_so(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Tenure(database_url)) as app, api_client(app) as api:
        app.open()
        with full(app):
            assert api.get("/ready").status_code == 200
            for _ in range(2):  # at most one fits into the page that is begun
                refused = api.post("/jobs", json={"type": "big", "payload": BIG})
            assert_problem(refused, 503, "store_unavailable")
            assert refused.json()["detail"].startswith("the disk of the database is full, this")
            assert_problem(ready := api.get("/ready"), 503, "store_unavailable")
            assert ready.json()["detail"].startswith("the disk was full, or failed, at a write")
            assert "Nothing can be stored: the disk was full" in api.get("/ui").text
        assert api.post("/jobs", json={"type": "big", "payload": BIG}).status_code == 201
        monkeypatch.setattr(store, "FULL_SECONDS", 0)
        assert api.get("/ready").status_code == 200
        wait_until(lambda: "Nothing can be" not in api.get("/ui").text, "the page to be read again")


# --- a child whose files may not grow, or whose file system is small -----------------------------


def in_child(name: str, folder: Path, *before: str) -> subprocess.CompletedProcess[str]:
    return run(
        [*before, sys.executable, "-m", "tests.chaos.disk_filling", name, str(folder)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no RLIMIT_FSIZE")
def test_files_that_may_not_grow(tmp_path: Path) -> None:
    done = in_child("files_may_not_grow", tmp_path)
    assert done.returncode == 0, done.stderr[-3_000:]


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
    assert done.stderr == ""  # a write that finds no room raises an exception
