"""Files of a database that are taken away while it is open: nothing more is acknowledged."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path

import pytest

from tenure import InvalidInput, StoreUnavailable, Tenure
from tenure.errors import SchemaMismatch
from tenure.store.sqlite.reader import SqliteReader
from tenure.telemetry import logs
from tests.support.waiting import wait_until
from tests.support.workers import running_worker, wait_until_completed

pytestmark = [
    pytest.mark.scenario(51),
    pytest.mark.skipif("sys.platform == 'win32'", reason="Windows keeps open files in place"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def app(path: Path) -> Iterator[Tenure]:
    app = Tenure(f"sqlite:///{path}")
    app.enqueue("before")
    yield app
    app.close()


def beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


@contextmanager
def obstructed(folder: Path) -> Iterator[None]:
    """Let there be a file in the place of a folder, as where something is not mounted."""
    folder.rename(aside := folder.with_suffix(".aside"))
    folder.touch()
    yield
    folder.unlink()
    aside.rename(folder)


@contextmanager
def without_rights() -> Iterator[None]:
    """Let files be closed to this user, also if that is root."""
    user = os.geteuid()
    os.seteuid(user or 65_534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("ending", ["", "-wal", "-shm"])
def test_a_file_deleted_under_a_live_process(app: Tenure, path: Path, ending: str) -> None:
    beside(path, ending).unlink()
    with pytest.raises(StoreUnavailable, match=r"deleted while it was open.*stop every process"):
        app.enqueue("after")
    with pytest.raises(StoreUnavailable, match="while it was open"):
        app.enqueue("again")
    assert beside(path, ending).exists() is False, "no second database is begun in its place"


def test_a_folder_that_is_none_for_a_while(app: Tenure, path: Path, tmp_path: Path) -> None:
    """Its file cannot be looked at: callers got the OSError of that."""
    with obstructed(tmp_path):
        with pytest.raises(StoreUnavailable, match="Not a directory"):
            app.enqueue("lost")
        with pytest.raises(StoreUnavailable, match="Not a directory"):
            SqliteReader(path).clock()
        assert "problem" in [check.health for check in app.check()]
    assert app.enqueue("after").type == "after"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a" * 300, "choose a shorter path"),
        ("/".join(["b" * 200] * 25), "choose a shorter path"),
        ("a\0b", "is not the URL of a SQLite file"),
    ],
)
def test_a_path_that_no_file_can_have(tmp_path: Path, name: str, said: str) -> None:
    """The OSError, or ValueError, of the look for links came out."""
    with pytest.raises(InvalidInput, match=said):
        Tenure(f"sqlite:///{tmp_path}/{name}").open()


@pytest.mark.parametrize("option", ["", "?filesystem=any"])
def test_a_folder_that_this_user_may_not_enter(tmp_path: Path, option: str) -> None:
    """The PermissionError of the look for links came out."""
    (closed := tmp_path / "closed").mkdir(mode=0o000)
    with without_rights(), pytest.raises(StoreUnavailable, match="enter each folder"):
        Tenure(f"sqlite:///{closed}/jobs.db{option}").open()


def test_a_folder_that_this_user_may_not_write() -> None:
    """It said `attempt to write a readonly database`, and not what to do."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        with closing(Tenure(f"sqlite:///{folder}/before.db")) as before:
            before.open()  # reads modules and the schema, which may lie where only root may read
        for rights in (0o777, 0o555):
            Path(folder).chmod(rights)
            app = Tenure(f"sqlite:///{folder}/jobs.db")
            refused = pytest.raises(StoreUnavailable, match="to write it, its folder")
            with without_rights(), closing(app), refused if rights == 0o555 else nullcontext():
                app.open()


def test_a_path_that_is_too_long_for_sqlite(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["a" * 100] * 5)
    folder.mkdir(parents=True)
    with pytest.raises(StoreUnavailable, match=r"unable to open.*less than 500 bytes"):
        Tenure(f"sqlite:///{folder}/jobs.db").open()


def test_a_file_with_other_bytes_for_texts_is_refused(path: Path) -> None:
    """Half of the largest payload was refused by a constraint, and `within` by a ValueError."""
    with closing(sqlite3.connect(path)) as own:
        own.execute("PRAGMA encoding = 'UTF-16le'")
        own.execute("CREATE TABLE mine (a)")
    with pytest.raises(SchemaMismatch, match="has the encoding UTF-16le"):
        Tenure(f"sqlite:///{path}").open()
    with closing(sqlite3.connect(path)) as own:
        assert own.execute("SELECT name FROM sqlite_schema").fetchall() == [("mine",)]


def test_a_program_that_starts_meanwhile_can_wait(app: Tenure, tmp_path: Path) -> None:
    """It ended with an OSError, where one that finds no folder tries again."""
    with obstructed(tmp_path), pytest.raises(StoreUnavailable, match="Not a directory"):
        Tenure(app.database).open()


def test_a_worker_keeps_what_it_cannot_report_meanwhile(
    app: Tenure, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outcome was taken for one that nobody can record: sent as a failure, then given up."""
    monkeypatch.setattr(logs, "REPEAT_SECONDS", 0)
    trouble = ExitStack()

    @app.job(max_retries=1)
    def work() -> str:
        trouble.enter_context(obstructed(tmp_path))
        return "done"

    with running_worker(app):
        job = work.enqueue()
        wait_until(lambda: caplog.text.count("it keeps 1 outcome and") > 1, "it to try twice")
        trouble.close()
        assert wait_until_completed(app, job).result == "done"


def test_a_database_replaced_under_a_live_process(app: Tenure, path: Path, tmp_path: Path) -> None:
    other = Tenure(f"sqlite:///{tmp_path}/other.db")
    other.enqueue("other")
    other.close()
    (tmp_path / "other.db").rename(path)
    with pytest.raises(StoreUnavailable, match="replaced"):
        app.enqueue("after")
    app.close()
    for ending in ("-wal", "-shm"):  # of the database before, as the manual says
        beside(path, ending).unlink()
    with closing(Tenure(f"sqlite:///{path}")) as again:
        assert [job.type for job in again.find()] == ["other"]


def test_files_put_back_are_used_again(app: Tenure, path: Path) -> None:
    away = beside(path, ".away")
    path.rename(away)
    with pytest.raises(StoreUnavailable):
        app.enqueue("after")
    away.rename(path)
    app.enqueue("after")
    assert {job.type for job in app.find()} == {"before", "after"}


@pytest.mark.parametrize("rest", [None, b""])
def test_a_log_outlives_its_database(app: Tenure, path: Path, rest: bytes | None) -> None:
    """A read, or a process that started meanwhile, made a new file: SQLite deleted the log."""
    away = beside(path, ".away")
    path.rename(away)
    if rest is not None:
        path.write_bytes(rest)
    for attempt in (app.verify, Tenure(f"sqlite:///{path}").open):
        with pytest.raises(StoreUnavailable, match="put the database back beside it"):
            attempt()
    away.rename(path)
    app.enqueue("after")
    with closing(Tenure(f"sqlite:///{path}")) as other:
        assert {job.type for job in other.find()} == {"before", "after"}


def test_a_log_deleted_under_a_live_process_comes_back_when_it_ends(path: Path) -> None:
    """What was acknowledged before is in the deleted log, which the last to close copies."""
    app = Tenure(f"sqlite:///{path}")
    kept = app.enqueue("before")
    beside(path, "-wal").unlink()
    with pytest.raises(StoreUnavailable):
        app.enqueue("after")
    app.close()
    with closing(Tenure(f"sqlite:///{path}")) as again:
        assert [job.id for job in again.find()] == [kept.id]
        assert again.verify() == []


def test_a_copy_without_its_log_is_an_older_database_and_a_backup_is_not(
    app: Tenure, path: Path, tmp_path: Path
) -> None:
    """Why the manual says to use SQLite's own backup: the copy of one file misses what is new."""
    shutil.copyfile(path, tmp_path / "copy.db")
    with (
        closing(sqlite3.connect(path)) as source,
        closing(sqlite3.connect(tmp_path / "backup.db")) as target,
    ):
        source.backup(target)
        source.execute("VACUUM INTO ?", (str(tmp_path / "vacuumed.db"),))
    with closing(Tenure(f"sqlite:///{tmp_path}/copy.db")) as copy:
        assert copy.find() == []
    for name in ("backup.db", "vacuumed.db"):
        with closing(Tenure(f"sqlite:///{tmp_path}/{name}")) as backup:
            assert [job.type for job in backup.find()] == ["before"]
            assert backup.verify() == []
