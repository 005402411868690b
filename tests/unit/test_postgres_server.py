"""The launcher itself, on servers of its own."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import psycopg
import pytest

from tests.support.postgres import (
    NOBODY,
    PostgresServer,
    PostgresUnavailable,
    own_folder,
    remove_abandoned_folders,
)

pytestmark = pytest.mark.postgres
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """How our own servers start and end is the question here, whatever else there is."""
    monkeypatch.delenv("TENURE_TEST_DATABASE_URL", raising=False)


def ask(url: str, question: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(question).fetchone()
    return row[0] if row else None


def wait_for_end(process_descriptor: int, seconds: int = 30) -> bool:
    """Whether the process ended in time; a process descriptor is readable once it has."""
    return bool(select.select([process_descriptor], [], [], seconds)[0])


@contextlib.contextmanager
def running(program: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Python process that has printed its first line."""
    owner = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        assert owner.stdout is not None
        yield owner, owner.stdout.readline().strip()


def test_databases_are_separate_and_copies_start_like_their_template() -> None:
    with PostgresServer() as server:
        first = server.create_database("first")
        with psycopg.connect(first) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        copy = server.create_database("copy", template="first")
        empty = server.create_database("empty")

        assert ask(copy, "SELECT answer FROM kept") == 42
        assert ask(empty, "SELECT to_regclass('kept')") is None

        server.drop_database("copy")
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            psycopg.connect(copy)


def test_leaving_ends_the_process_and_removes_the_folder() -> None:
    with PostgresServer() as server:
        assert ask(server.url(), "SELECT 1") == 1
        assert server.pid is not None
        assert server.folder is not None
        folder = server.folder
        descriptor = os.pidfd_open(server.pid)
        assert not wait_for_end(descriptor, seconds=0)
    try:
        assert wait_for_end(descriptor, seconds=0)
    finally:
        os.close(descriptor)
    assert not folder.exists()


def test_a_durable_server_keeps_its_data_over_any_stop() -> None:
    modes: tuple[Literal["smart", "fast", "immediate"], ...] = ("smart", "fast", "immediate")
    with PostgresServer(durable=True) as server:
        assert ask(server.url(), "SHOW fsync") == "on"
        for mode in modes:
            with psycopg.connect(server.url()) as connection:
                connection.execute(f"CREATE TABLE kept_{mode} AS SELECT 42 AS answer".encode())
            server.create_database(f"made_{mode}")  # its connection must hold up no stop
            server.stop(mode)
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(server.url())
            server.start()
            assert ask(server.url(), f"SELECT answer FROM kept_{mode}") == 42, mode


def test_settings_of_the_caller_win() -> None:
    with PostgresServer(settings={"fsync": "on", "max_connections": "7"}) as server:
        assert ask(server.url(), "SHOW fsync") == "on"
        assert ask(server.url(), "SHOW max_connections") == "7"


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv, of util-linux")
def test_a_killed_owner_takes_the_server_along() -> None:
    program = """
from tests.support.postgres import PostgresServer
with PostgresServer() as server:
    print(server.pid, flush=True)
    input()
"""
    with running(program) as (owner, pid):
        descriptor = os.pidfd_open(int(pid))
        owner.kill()
    try:
        assert wait_for_end(descriptor)
    finally:
        os.close(descriptor)


def test_the_folder_of_a_killed_owner_is_removed_and_that_of_a_living_one_is_not(
    tmp_path: Path,
) -> None:
    program = f"""
from pathlib import Path
from typing import Literal
from tests.support.postgres import own_folder
with own_folder(Path({str(tmp_path)!r})) as folder:
    print(folder, flush=True)
    input()
"""
    with running(program) as (owner, folder):
        remove_abandoned_folders(tmp_path)
        assert Path(folder).exists()
        owner.kill()
    remove_abandoned_folders(tmp_path)
    assert not Path(folder).exists()


def test_a_folder_is_removed_by_its_owner_alone_while_others_come(tmp_path: Path) -> None:
    def come_and_go(_: int) -> None:
        for _ in range(10):
            with own_folder(tmp_path) as folder:
                for number in range(100):
                    (folder / str(number)).touch()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another account for PostgreSQL")
def test_root_without_user_namespaces_runs_it_as_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # and so without unshare
    with PostgresServer() as server:
        assert ask(server.url(), "SELECT 1") == 1
        assert Path(f"/proc/{server.pid}").stat().st_uid == NOBODY


def test_a_url_in_the_environment_is_used_and_left_running(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = postgres_server
    monkeypatch.setenv("TENURE_TEST_DATABASE_URL", theirs.url("postgres"))
    with PostgresServer() as server:
        assert server.pid is None
        assert ask(server.create_database("ours"), "SELECT current_database()") == "ours"
        server.drop_database("ours")
        assert ask(theirs.url(), "SELECT 1") == 1
        with PostgresServer(durable=True) as own:
            assert own.pid is not None


def test_a_url_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENURE_TEST_DATABASE_URL", "postgresql:///jobs?host=/nowhere")
    with pytest.raises(PostgresUnavailable, match="TENURE_TEST_DATABASE_URL"):
        PostgresServer().start()


def test_a_fork_that_ends_leaves_the_folder_to_its_maker(tmp_path: Path) -> None:
    program = f"""
import os, sys
from pathlib import Path
from tests.support.postgres import own_folder
with own_folder(Path({str(tmp_path)!r})) as folder:
    child = os.fork()
    if child == 0:
        sys.exit()
    os.waitpid(child, 0)
    print(folder.exists())
print(folder.exists())
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr
