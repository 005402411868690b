"""Answers that pages share: new when that is quick, else the last one, which says how old it is."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tenure import Tenure
from tenure.dashboard.push import OLD_SECONDS, WAIT_SECONDS, ReadCache
from tenure.errors import StoreUnavailable
from tenure.rules.stats import Count

ONE = [Count("pending", "default", "a", 1)]
TWO = [Count("pending", "default", "a", 2)]


class Slow(Tenure):
    """Counts when it is let."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}/jobs.db")
        self.let = threading.Event()
        self.let.set()
        self.began = threading.Semaphore(0)

        counts = self.stats.counts

        def slow() -> list[Count]:
            found = counts()
            self.began.release()
            self.let.wait(3)  # long enough for any page; no test hangs
            return found

        self.stats.counts = slow  # type: ignore[method-assign]


def test_a_page_does_not_wait_for_new_counts_where_there_are_older_ones(tmp_path: Path) -> None:
    with Slow(tmp_path) as app:
        cache = ReadCache(app)
        app.enqueue("a")
        assert cache.counts() == ONE
        app.enqueue("a")
        app.let.clear()
        cache.forget()
        assert app.began.acquire(timeout=3)
        assert cache.counts() == ONE  # it would wait for ever for those under way
        assert app.began.acquire(timeout=3)
        assert cache.counts() == ONE
        assert not app.began.acquire(blocking=False)  # which are read once, however many ask
        app.let.set()
        assert cache._entries["counts"].reading is not None
        cache._entries["counts"].reading.result()
        assert cache.counts() == TWO


def test_a_page_waits_longer_where_what_it_has_is_very_old(tmp_path: Path) -> None:
    with Slow(tmp_path) as app:
        cache = ReadCache(app)
        app.enqueue("a")
        assert cache.counts() == ONE
        app.enqueue("a")
        entry = cache._entries["counts"]
        assert entry.began is not None
        entry.began, entry.until = entry.began - OLD_SECONDS, 0.0  # nobody has looked meanwhile
        app.let.clear()
        threading.Timer(5 * WAIT_SECONDS, app.let.set).start()
        assert cache.counts() == TWO


def test_what_was_read_before_an_action_is_not_shown_after_it(tmp_path: Path) -> None:
    with Tenure(f"sqlite:///{tmp_path}/jobs.db") as app:
        cache = ReadCache(app)
        app.enqueue("a")
        assert cache.queues()[0][0].paused_at is None
        app.queues.pause("default")
        assert cache.queues()[0][0].paused_at is None
        cache.forget()
        assert cache.queues()[0][0].paused_at is not None


def test_it_is_told_how_old_an_answer_is(tmp_path: Path) -> None:
    with Slow(tmp_path) as app:
        cache = ReadCache(app)
        app.enqueue("a")
        assert cache.lag(app.core.clock(), "counts").jobs == 0  # nothing is shown, nothing is old
        cache.counts()
        young = cache.lag(app.core.clock(), "counts").jobs
        older = cache.lag(app.core.clock(), "counts").jobs
        assert 0 < young < older
        app.core.measure()
        assert cache.lag(app.core.clock(), "counts").rates >= 0


def test_the_first_who_asks_waits_and_is_told_what_went_wrong(tmp_path: Path) -> None:
    app = Tenure(f"sqlite:///{tmp_path}/none/jobs.db")
    with pytest.raises(StoreUnavailable):
        ReadCache(app).counts()


def test_counting_can_begin_before_anybody_looks(tmp_path: Path) -> None:
    with Slow(tmp_path) as app:
        app.let.clear()
        cache = ReadCache(app)
        cache.begin()
        assert app.began.acquire(timeout=3)
        app.let.set()
        assert cache.counts() == []
        assert not app.began.acquire(blocking=False)
