"""`app.running()`: a worker inside a program, on its loop or on a thread, without signals."""

from __future__ import annotations

import asyncio
import runpy
import signal
import subprocess
import sys
import threading
import types
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import pytest

from tenure import InvalidInput, StoreUnavailable, Tenure
from tenure.worker import process
from tests.support.cli import clean_environment
from tests.support.waiting import WAIT_SECONDS, wait_until


def ended(app: Tenure, job_id: str) -> bool:
    return app.get(job_id).status == "completed"


def test_coroutines_run_on_the_loop_of_the_program(app: Tenure) -> None:
    """A pool of connections that the application made for its loop is usable in handlers."""
    seen: list[object] = []
    done = asyncio.Event()

    @app.job
    async def work() -> None:
        seen.append(asyncio.get_running_loop())
        done.set()

    async def program() -> None:
        seen.append(asyncio.get_running_loop())
        async with app.running(concurrency=2, grace=5):
            job = await work.enqueue_async()
            async with asyncio.timeout(10):
                await done.wait()
        assert ended(app, job.id)  # what ran at the end of the block is reported

    asyncio.run(program())
    assert len(seen) == 2
    assert seen[0] is seen[1]


def eager(
    loop: asyncio.AbstractEventLoop, coroutine: Generator[Any, Any, Any], **_: Any
) -> asyncio.Future[Any]:
    """Run a coroutine up to its first wait, as `asyncio.eager_task_factory` of 3.12 does."""
    try:
        first = coroutine.send(None)
    except StopIteration as end:
        done = loop.create_future()
        done.set_result(end.value)
        return done

    @types.coroutine
    def rest() -> Generator[Any, Any, Any]:
        awaited = first
        while True:
            try:
                sent = yield awaited
            except BaseException as error:
                step = partial(coroutine.throw, error)
            else:
                step = partial(coroutine.send, sent)
            try:
                awaited = step()
            except StopIteration as end:
                return end.value

    return asyncio.Task(rest(), loop=loop)


def test_a_program_with_eager_tasks_runs_many_jobs_that_wait_for_nothing(app: Tenure) -> None:
    """Each was started from the end of the one before: too deep after some hundred."""
    ran: list[int] = []
    all_ran = asyncio.Event()

    @app.job(max_retries=1)
    async def note(number: int) -> None:
        ran.append(number)
        if len(ran) == 1_000:
            all_ran.set()

    async def program() -> None:
        factory = getattr(asyncio, "eager_task_factory", eager)  # from Python 3.12 on
        asyncio.get_running_loop().set_task_factory(factory)
        async with app.running(concurrency=2), asyncio.timeout(20):
            await all_ran.wait()

    app.enqueue_many([note.new_job(number) for number in range(1_000)])
    asyncio.run(program())
    assert app.count(status="completed").jobs == 1_000


def test_what_the_program_declares_is_known_in_the_block(app: Tenure) -> None:
    @app.schedule(every="1h")
    @app.job
    def sweep() -> None: ...

    with app.running():
        assert app.schedules.get("sweep").name == "sweep"


def test_a_worker_in_a_block_on_any_thread_leaves_signals_alone(app: Tenure) -> None:
    started = threading.Event()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    problems: list[BaseException] = []

    @app.job
    def work() -> None:
        started.set()

    def program() -> None:
        try:
            with app.running(grace=5):
                job = work.enqueue()
                wait_until(lambda: ended(app, job.id))
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=program)
    thread.start()
    wait_until(started.is_set)
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    thread.join(10)
    assert not thread.is_alive()
    assert problems == []


def test_handlers_get_the_grace_period_at_the_end_of_the_block(app: Tenure) -> None:
    began = asyncio.Event()

    @app.job
    async def long() -> str:
        began.set()
        await asyncio.sleep(0.3)
        return "whole"

    async def program() -> None:
        async with app.running(grace=10):
            job = await long.enqueue_async()
            async with asyncio.timeout(10):
                await began.wait()
        assert app.get(job.id).status == "completed"

    asyncio.run(program())


def test_what_the_block_raises_is_not_hidden(app: Tenure) -> None:
    with pytest.raises(KeyError), app.running():
        raise KeyError("mine")


def test_what_ended_the_worker_is_raised_at_the_end_of_the_block(app: Tenure) -> None:
    @app.lifespan
    @contextmanager
    def pool() -> Iterator[None]:
        raise OSError("no route to the service")
        yield

    async def program() -> None:
        async with app.running():
            pass

    with pytest.raises(OSError, match="no route"), app.running():
        pass
    with pytest.raises(OSError, match="no route"):
        asyncio.run(program())
    with pytest.raises(KeyError), app.running():
        raise KeyError("mine")


def test_a_block_that_is_cancelled_at_its_begin_leaves_nothing_behind(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, go_on, connect = threading.Event(), threading.Event(), Tenure.open

    def slow(self: Tenure) -> None:
        opening.set()
        assert go_on.wait(10)
        connect(self)

    monkeypatch.setattr(Tenure, "open", slow)

    running = app.running()

    async def block() -> None:
        async with running:
            pytest.fail("it began")

    async def program() -> None:
        task = asyncio.create_task(block())
        assert await asyncio.to_thread(opening.wait, 10)
        for _ in range(2):  # by whoever loses patience
            task.cancel()
            await asyncio.sleep(0.05)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(program())
    assert "tenure-maintenance" not in {thread.name for thread in threading.enumerate()}


def test_a_database_that_does_not_answer_is_told_at_the_begin(tmp_path: object) -> None:
    app = Tenure("postgresql://nobody@127.0.0.1:1/none")

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with app.running():
            yield

    async def program() -> None:
        async with lifespan():
            pytest.fail("it began")

    with pytest.raises(StoreUnavailable):
        asyncio.run(program())


@pytest.mark.parametrize(
    ("module", "asks"),
    [("gevent.monkey", "is_module_patched"), ("eventlet.patcher", "is_monkey_patched")],
)
def test_among_green_threads_a_worker_says_that_it_cannot_run(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, module: str, asks: str
) -> None:
    """It hung without a word. The libraries are not installed here: only this is asked of them."""
    patched = types.SimpleNamespace(**{asks: lambda name: name.startswith("thread")})
    monkeypatch.setitem(sys.modules, module, patched)
    for start in (app.run_worker, app.running):
        with pytest.raises(RuntimeError, match="has replaced the threads"):
            start()


@pytest.mark.parametrize("lease", [0.5, "1d1s"])
def test_a_lease_in_code_has_the_bounds_of_the_settings(app: Tenure, lease: float | str) -> None:
    refusal = r"\$\.lease: a lease lasts 1 second to a day"
    with pytest.raises(InvalidInput, match=refusal):
        app.running(lease=lease)
    with pytest.raises(InvalidInput, match=refusal):
        app.run_worker(lease=lease, max_idle="100ms")


def test_run_worker_on_another_thread_says_what_to_use(app: Tenure) -> None:
    """`to_thread(app.run_worker)` ended with "signal only works in main thread", unseen."""

    async def program() -> None:
        await asyncio.to_thread(app.run_worker)

    with pytest.raises(RuntimeError, match=r"with app\.running\(\)"):
        asyncio.run(program())


@pytest.mark.parametrize("timeout", [None, "1m"])
def test_a_wait_that_blocks_the_loop_of_the_worker_says_so(
    app: Tenure, timeout: str | None
) -> None:
    """It would wait for ever: the job can run only when the loop is free."""

    @app.job
    async def work() -> str:
        return "done"

    async def program() -> None:
        async with app.running():
            handle = await work.submit_async()
            with pytest.raises(RuntimeError, match="await wait_async"):
                work.options(delay="1h").submit().result(timeout=timeout)
            with pytest.raises(RuntimeError, match="async for"):
                list(app.as_completed([handle], timeout=timeout))
            assert await handle == "done"
            assert len(list(app.as_completed([handle], timeout=timeout))) == 1
            assert handle.result(timeout=timeout) == "done"  # it has settled: nothing to wait for
            assert (await asyncio.to_thread(app.wait, handle.id)).status == "completed"
            with pytest.raises(TimeoutError):  # as asked, however short
                app.wait(work.options(delay="1h").enqueue(), timeout=0.01)
        late = work.options(delay="1h").enqueue()
        with pytest.raises(TimeoutError):  # without a worker on the loop, another program may help
            app.wait(late, timeout=1.1)

    asyncio.run(program())


LEFT_BEHIND = """
import asyncio
import sys
import time

from tenure import Tenure

app = Tenure(sys.argv[1])

@app.job
async def slow() -> None:
    started.append(1)
    await asyncio.to_thread(time.sleep, 0.2)
    await asyncio.to_thread(time.sleep, 0.2)

started = []
app.running(grace="30s").__enter__()
slow.enqueue()
while not started:
    time.sleep(0.01)
raise SystemExit(7)
"""


@pytest.mark.own_database
def test_a_worker_that_a_script_leaves_behind_ends_with_it(database_url: str) -> None:
    """The program never ended: its main thread had, and the worker waited for more jobs."""
    ended = subprocess.run(
        [sys.executable, "-c", LEFT_BEHIND, database_url],
        check=False,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        env=clean_environment(),
    )
    assert (ended.returncode, ended.stderr) == (7, "")
    with Tenure(database_url) as app:
        (job,) = app.find()
        assert job.event == "completed"
        assert app.workers.list() == []


def test_a_python_without_the_private_function_has_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then each `app.running()` would be an AttributeError."""
    monkeypatch.delattr(threading, "_register_atexit")
    assert runpy.run_path(process.__file__)["Running"]
