"""How long the threads and connections of an application live that nobody closes."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from tenure import Handle, Tenure
from tenure.store import Store
from tests.support.waiting import wait_until

JOBS = 16


def use_and_drop(database_url: str) -> weakref.ref[Store]:
    app = Tenure(database_url)

    @app.job
    def mail(number: int) -> None: ...

    with ThreadPoolExecutor(JOBS) as callers:  # so many at once that threads commit for them
        list(callers.map(mail.enqueue, range(JOBS)))
    assert len(app.find(limit=100)) >= JOBS
    return weakref.ref(app.core.store)


@pytest.mark.each_engine
def test_an_application_that_is_dropped_is_closed(database_url: str) -> None:
    """A cell of a notebook makes it again at each run, until PostgreSQL has no connection left."""
    others = set(threading.enumerate())
    stores = [use_and_drop(database_url) for _ in range(3)]

    def are_closed() -> bool:
        gc.collect()
        left = {one.name for one in threading.enumerate() if one not in others}
        return not any(store() for store in stores) and left <= {"tenure-wire-watch"}

    wait_until(are_closed)
    with Tenure(database_url) as app:
        assert len(app.find(limit=100)) == 3 * JOBS


@pytest.mark.each_engine
def test_a_handle_keeps_its_application_open(database_url: str) -> None:
    def submit() -> Handle[None]:
        app = Tenure(database_url)

        @app.job
        def mail() -> None: ...

        return mail.submit()

    handle = submit()
    gc.collect()
    assert handle.progress() is None


def test_an_application_that_was_closed_needs_no_thread_for_that() -> None:
    def use() -> None:
        with Tenure("sqlite:///closed.db") as app:
            app.enqueue("mail")

    use()
    closing: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tenure.app.core._close", lambda *what: closing.append(what))
        for _ in range(2):
            use()
        gc.collect()
    assert closing == []


IN_CHILD = """
import ctypes, gc, os, sys, threading, warnings
import psycopg
from tenure import Tenure
from tenure.app import core as lifetime

warnings.simplefilter("ignore")  # newer Pythons warn about forking beside threads: the point here
SESSIONS = (  # not those of autovacuum, which comes and goes
    "SELECT pid, application_name, query FROM pg_stat_activity"
    " WHERE datname = current_database() AND backend_type = 'client backend'"
)


def sessions():
    return {pid: rest for pid, *rest in other.execute(SESSIONS)}


app = Tenure(sys.argv[1])
app.enqueue("mail")
app.find()
with psycopg.connect(sys.argv[1]) as other:
    before = sessions()
    if not (child := ctypes.PyDLL(None).fork()):
        if sys.argv[2] == "wake":
            app.wake()  # nobody, as this process has opened nothing yet
            os._exit(0 if app.core._opened is None else 2)
        if sys.argv[2] == "close":
            app.close()
            os._exit(0)
        ended, end = threading.Event(), lifetime._end
        lifetime._end = lambda *what: (end(*what), ended.set())
        del app
        gc.collect()
        if not ended.wait(30):
            os._exit(1)
        for thread in threading.enumerate():
            if thread.name == "tenure-close":
                thread.join()
        gc.collect()  # what is left of a connection would speak here
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    app.enqueue("mail")
    app.find()
    other.rollback()
    after = sessions()
    assert after.keys() == before.keys(), (before, after)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize("what", ["drop", "close", "wake"])
def test_a_child_leaves_what_its_parent_has_opened(postgres_url: str, what: str) -> None:
    """Also where C code has forked, as in uWSGI, and the child uses Tenure for nothing before."""
    command = [sys.executable, "-c", IN_CHILD, postgres_url, what]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
