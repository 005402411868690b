"""A caller who waits adds its one job on its own thread, whatever interrupts it there."""

from __future__ import annotations

import dis
import gc
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from tenure import NewJob, StoreUnavailable, Tenure
from tenure.rules.jobs import CheckedJob, Enqueued
from tenure.store import commit
from tenure.store.commit import Announcements, Committer
from tenure.store.sqlite.writer import Sqlite
from tenure.store.work import CallWork, EnqueueWork
from tenure.values.ids import new_id
from tests.support.waiting import wait_until

# An interrupt that loses the connection is followed by the first of these warnings from Python 3.13
# on, one within a generator that ends by the second.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*generator:pytest.PytestUnraisableExceptionWarning"),
]
SOURCE = str(Path(commit.__file__).parent)
"""Where interrupts come: in the code of the store."""


class Noted(Future[list[Enqueued]]):
    """A future that knows which thread has answered it, before whoever waits for it goes on."""

    thread = 0

    def set_result(self, result: list[Enqueued]) -> None:
        self.thread = threading.get_ident()
        super().set_result(result)


class Counted:
    """A committer on a clock that stands still, and the threads that its commits were made on."""

    def __init__(self, path: Path) -> None:
        self.now = 0.0
        db = Sqlite(path)
        self.committer = Committer([db], lambda: None, lambda: self.now, direct=db.beside())

    def add(self, count: int = 1) -> str:
        """Add jobs; return on whose thread: "caller" or "committer"."""
        jobs = [CheckedJob(id=new_id(), type="t") for _ in range(count)]
        added = Noted()
        self.committer.do(EnqueueWork(jobs, added)).future.result()
        return "caller" if added.thread == threading.get_ident() else "committer"

    def call(self) -> None:
        self.committer.submit(CallWork("look", lambda db: None)).future.result()


@pytest.fixture
def counted(path: Path) -> Iterator[Counted]:
    counted = Counted(path)
    yield counted
    counted.committer.close()


def test_one_job_is_added_on_the_thread_of_a_caller_who_waits(counted: Counted) -> None:
    assert counted.add() == "caller"
    assert counted.add(2) == "committer"


def test_work_beside_it_is_committed_together(counted: Counted) -> None:
    counted.call()
    assert counted.add() == "committer"
    counted.now += commit.CALM_SECONDS
    assert counted.add() == "caller"


def test_who_queues_alone_comes_back_to_its_own_thread(counted: Counted) -> None:
    counted.call()
    assert counted.add() == "committer"
    counted.now += commit.CALM_SECONDS
    assert [counted.add() for _ in range(3)] == ["caller"] * 3


def test_a_caller_beside_another_one_queues(counted: Counted) -> None:
    db = counted.committer._direct._free.pop()  # as one who is inside has it
    assert counted.add() == "committer"
    counted.committer._direct._free.append(db)
    assert counted.add() == "caller"


def test_now_and_then_the_thread_tidies_up(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one commit, after which the next is again the caller's."""
    monkeypatch.setattr(commit, "MAX_COMMITS", 3)
    monkeypatch.setattr(Announcements, "owe", lambda _: None)  # each would have it tidy up, too
    others: list[int] = []
    taken: list[bool] = []
    (db,) = counted.committer._databases

    def tidy(commits: int = 0) -> None:
        others.append(commits)
        taken.append(not counted.committer._direct._free)

    monkeypatch.setattr(db, "tidy", tidy)
    for _ in range(3):
        assert [counted.add() for _ in range(4)] == ["caller"] * 3 + ["committer"]
        wait_until(lambda: counted.committer._direct._commits == 0, "the thread to tidy up")
        wait_until(lambda: bool(counted.committer._direct._free), "callers to be let in again")
    assert others == [3, 3, 3]
    assert taken == [True] * 3  # a checkpoint finds no commit in between


def test_commits_of_callers_count_before_the_thread_has_connected(path: Path) -> None:
    db = Sqlite(path)
    db.tidy(200)
    db.enqueue_alone([CheckedJob(id=new_id(), type="t")], whole=True)
    db.tidy(100)
    assert db._checkpoints._commits >= 300
    db.close()


def test_while_another_process_writes_it_queues_at_once(path: Path, counted: Counted) -> None:
    counted.add()
    with closing(sqlite3.connect(path, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.05, other.commit)
        timer.start()
        assert counted.add() == "committer"
        timer.join()


# --- interrupts -------------------------------------------------------------------------------


@cache
def places(code: CodeType) -> frozenset[int]:
    """Where Python looks for signals: where functions, lines and loops begin, and after calls."""
    found, is_next = set[int](), True
    for each in dis.get_instructions(code):
        if is_next or each.starts_line or each.is_jump_target:
            found.add(each.offset)
        is_next = each.opname.startswith("CALL")
    return frozenset(found)


@contextmanager
def at_step(number: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """Call `act` once, before the step of this number in the code of the store.

    A step is one of the `places`, when it is reached first: what is done for each column of a job
    is interrupted at the first of them.
    """
    steps = [0]
    inside = [False]
    reached: set[tuple[CodeType, int]] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        frame.f_trace_opcodes = True
        place = (frame.f_code, frame.f_lasti)
        is_step = event == "opcode" and frame.f_lasti in places(frame.f_code)
        if is_step and not inside[0] and place not in reached:
            reached.add(place)
            steps[0] += 1
            if steps[0] == number:
                inside[0] = True
                act()
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks for it in `settrace` only
    sys.settrace(trace)
    try:
        yield steps
    finally:
        sys.settrace(before)


def interrupt() -> None:
    raise KeyboardInterrupt


def knowing(path: Path) -> Tenure:
    """An application that has the handlers: to look for them in the database is to queue work."""
    app = Tenure(f"sqlite:///{path}")
    for name in ("first", "counted", "interrupted", "after", "again", "nested", "outer"):
        app.job(name=name)(lambda: None)
    return app


def steps_of(app: Tenure) -> int:
    app.enqueue("first")
    with at_step(0, interrupt) as steps:
        app.enqueue("counted")
    assert steps[0] > 100
    return steps[0]


def free(path: Path) -> None:
    """Nothing holds the file, a checkpoint aside."""
    with closing(sqlite3.connect(path, timeout=2, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")


def test_an_interrupt_at_any_step_leaves_nothing_half_done(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C in the main thread does, but before each step in turn."""
    monkeypatch.setattr(commit, "MAX_COMMITS", 10_000)  # all on this thread
    monkeypatch.setattr(commit, "CALM_SECONDS", 0)
    app = knowing(path)
    steps = steps_of(app)
    lost = whole = 0
    for number in range(1, steps + 1):
        with suppress(KeyboardInterrupt), at_step(number, interrupt):
            app.enqueue("interrupted")
            whole += 1  # one that is queued has fewer steps
        free(path)
        assert app.enqueue("after").status == "pending"
        if not app.core.store._committer._direct._free:  # now it queues all work
            lost += 1
            app.close()
            app = knowing(path)
            app.enqueue("again")
    assert lost < 20  # a few steps of more than 100
    assert whole < 10
    assert app.verify() == []
    types = {count.type: count.jobs for count in app.stats.counts()}
    assert whole < types["interrupted"] < steps
    assert types["after"] == steps
    app.close()
    gc.collect()  # here, where the warnings of what was lost are ignored


def test_a_signal_handler_may_enqueue_at_any_step(path: Path) -> None:
    with closing(knowing(path)) as app:
        steps = steps_of(app)
        nested: list[str] = []
        for number in range(1, steps + 1):
            while len(nested) < number:  # one that is queued, as during a tidy-up, has fewer steps
                with at_step(number, lambda: nested.append(app.enqueue("nested").id)):
                    app.enqueue("outer")
            free(path)
        assert len({app.get(id).id for id in nested}) == len(nested) == steps
        assert app.verify() == []


def test_a_store_that_a_signal_closes_at_any_step_of_an_enqueue_does_not_hang(path: Path) -> None:
    """Several jobs are queued: the handler runs while this thread holds the lock of the queue."""
    jobs = [NewJob("outer", {}, {}), NewJob("outer", {}, {})]
    with closing(knowing(path)) as app:
        app.enqueue("first")
        with at_step(0, interrupt) as steps:
            app.enqueue_many(jobs)
    closed = 0
    for number in range(1, steps[0] + 1, 3):
        app = knowing(path)
        app.enqueue("first")
        with at_step(number, app.close):
            try:
                app.enqueue_many(jobs)
            except StoreUnavailable:
                closed += 1
        app.close()
        free(path)
    assert closed > 0


def test_a_store_that_is_closed_at_any_step_keeps_no_connection(path: Path) -> None:
    with closing(knowing(path)) as app:
        steps = steps_of(app)
    for number in range(1, steps + 1, 3):
        app = knowing(path)
        app.enqueue("first")
        committer = app.core.store._committer
        with at_step(number, app.close), suppress(StoreUnavailable):
            app.enqueue("outer")
        assert committer._direct._free == []
        free(path)
