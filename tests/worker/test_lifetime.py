"""How long the threads and connections of an application live that nobody closes."""

from __future__ import annotations

import gc
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
        patch.setattr("tenure.app.lifetime._close", closing.append)
        for _ in range(2):
            use()
        gc.collect()
    assert closing == []
