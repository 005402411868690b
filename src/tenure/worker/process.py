"""A worker, and what runs beside it on the database: as a process, or inside a program.

Of a worker process, the first SIGTERM or SIGINT asks the worker to finish within its grace period.
The second ends the process at once; the leases run out.

A web application, a script or a notebook has its own life, so a worker inside of it installs no
signal handlers and ends with its block. With `async with`, handlers run on the event loop of the
program, so that they share its connections; with `with`, on a loop in a thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - it registers its end before ours
import contextlib
import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self

from tenure import forks
from tenure.app.app import Tenure
from tenure.app.schedules import declare as declare_schedules
from tenure.app.waiting import worker_on_this_loop
from tenure.errors import InvalidInput, StoreUnavailable, TenureError, Unauthorized
from tenure.handlers.registry import Handlers
from tenure.rules.reports import WorkSource
from tenure.settings import Settings
from tenure.values.findings import CheckResult
from tenure.values.names import check_queues
from tenure.worker.child import HANGUP, answered_stop_signals, new_loop
from tenure.worker.health import health_served
from tenure.worker.maintenance import MaintenanceThread, StallWatch
from tenure.worker.processes import CHILD
from tenure.worker.webhook_delivery import WebhookDelivery
from tenure.worker.worker import Worker

log = logging.getLogger(__name__)

NOT_LOGGED = ("library", "types")
"""The checks whose warnings are not logged. Tenure works around what the first one finds. While
workers start, the queues of some types have none yet."""
ABORTED = 130
DECLARE_SECONDS = 1.0
"""How long to wait before types are sent again to a source that did not answer."""
FIRST_TRY_SECONDS = 1.0
"""How long a program waits for its first try before it says that it is there."""
UNDECLARED = "other programs do not know what this one declares: %s"
LEFTOVER_SECONDS = 1.0
"""How long a process that is done waits for tasks and threads that handlers left behind."""
MIN_FILES = 64
"""With fewer a worker does not start: it has about 25 open when idle, and handlers open more."""
SPARE_SECONDS = 3.0
"""Three tries of a heartbeat that has failed."""
YOUNG_OBJECTS = 5_000
"""Objects after which the garbage collector looks at the youngest; Python's default is 700."""
SWITCH_SECONDS = 0.0001
"""How long a thread waits for Python while another one computes. The threads of the store come back
from the database ten times per exchange: at Python's default of 5 ms they would mostly wait."""


def worker_of(app: Tenure, settings: Settings, source: WorkSource | None = None) -> Worker:
    """Return a worker for the handlers of `app` as the settings say.

    `source` is where its jobs come from, by default the database of `app`.
    """
    refuse_green_threads()
    refuse_lost(app.core.handlers)
    return Worker(
        source or app.core,
        app.core.handlers,
        queues=check_queues(settings.queues, "queues"),
        concurrency=settings.concurrency,
        lease_seconds=settings.lease_seconds,
        grace_seconds=settings.grace_seconds,
        redaction=app.core.redaction.also(settings.redact),
        tracing=app.core.tracing,
    )


def run_worker(
    app: Tenure,
    settings: Settings,
    *,
    source: WorkSource | None = None,
    health: tuple[str, int] | None = None,
    max_idle_seconds: float | None = None,
) -> None:
    """Run the handlers of `app` until a signal asks to stop; return when they have finished.

    Call this on the main thread, because Python handles signals there. Jobs come from `source`, by
    default from the database of `app`, which is then `maintained` here. `health` is the host and
    port where supervisors may ask. Returns also once there was no job to run for
    `max_idle_seconds`. Raises SchemaMismatch, InvalidInput if the port is taken or this process may
    open too few files, and RuntimeError on another thread or in a coroutine.
    """
    refuse_children()
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "run_worker needs the main thread, because Python handles signals there: use "
            "`with app.running():` or `async with app.running():` elsewhere"
        )
    if _is_in_a_coroutine():
        raise RuntimeError(
            "run_worker needs a thread where no event loop runs, as one does in a coroutine or a "
            "notebook: use `async with app.running():` there"
        )
    forks.end_at_sigterm()
    may_open(MIN_FILES, f"a worker needs {MIN_FILES}", MIN_FILES)
    worker = worker_of(app, settings, source)
    stops = [worker.request_stop]
    with contextlib.ExitStack() as running:
        if health is not None:
            running.enter_context(health_served(worker, health))
        if source is None:
            with contextlib.suppress(StoreUnavailable):  # it waits for the database
                app.open()
        # Until deliveries are done, which may be long after the worker.
        running.enter_context(stopped_by_signals(lambda: [stop() for stop in stops]))
        if source is None:
            # One that ends when it is idle may not be there for longer.
            watch = None if max_idle_seconds is None else StallWatch()
            delivery = running.enter_context(maintained(app, settings, [worker], watch))
            stops.append(delivery.ask_to_stop)
        else:
            handlers = app.core.handlers
            running.enter_context(declared(lambda: source.declare(handlers.options())))
        running.enter_context(tuned_for_jobs())
        run_loop(worker.run(max_idle_seconds) if source else work(app, worker, max_idle_seconds))


def _is_in_a_coroutine() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def work(app: Tenure, worker: Worker, max_idle_seconds: float | None = None) -> None:
    """Run a worker of the jobs of `app`, on whose loop no wait for one of them may block."""
    with worker_on_this_loop(app):
        await worker.run(max_idle_seconds)


def refuse_children() -> None:
    """Raise RuntimeError in a child process for handlers, which imports the main module."""
    if multiprocessing.current_process().name == CHILD:
        raise RuntimeError(
            "a child process imports your main module: run workers only under "
            "`if __name__ == '__main__':`"
        )


def refuse_lost(handlers: Handlers) -> None:
    """Raise InvalidInput for a handler that a child process has no module to import from."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)  # None of a file and of a prompt
    there = hasattr(main, "__file__") if spec is None else not spec.name.endswith("__main__")
    for name in () if there else handlers.types() or ():
        handler = handlers.find(name)
        if handler and handler.in_process and handler.function.__module__ == "__main__":
            raise InvalidInput(
                f"{name} runs in a child process, which imports no __main__.py and nothing typed "
                "at a prompt: define it in another module"
            )


def may_open(least: int, needs: str, wanted: int) -> int:
    """Raise this process's limit of open files to `wanted`, as far as it may; return the limit.

    A negative number is none. Raises InvalidInput, which says what it `needs`, below `least`.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return -1
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < wanted:
        soft = wanted if hard < 0 else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if 0 <= soft < least:
        raise InvalidInput(
            f"this process may open {soft} files at once; {needs}: raise the limit, by `ulimit -n` "
            "in a shell, LimitNOFILE= of a systemd service or --ulimit nofile= of a container"
        )
    return soft


def refuse_green_threads() -> None:
    """Raise RuntimeError where threads take turns on one: the loop of a worker would keep it."""
    gevent, eventlet = map(sys.modules.get, ("gevent.monkey", "eventlet.patcher"))
    for library, is_patched in (
        ("gevent", gevent is not None and gevent.is_module_patched("threading")),
        ("eventlet", eventlet is not None and eventlet.is_monkey_patched("thread")),
    ):
        if is_patched:
            raise RuntimeError(
                f"{library} has replaced the threads of this process, in which you can enqueue, "
                "but run no worker: start one in a process that it does not patch"
            )


@contextlib.contextmanager
def maintained(
    app: Tenure,
    settings: Settings,
    workers: Sequence[Worker],
    watch: StallWatch | None = None,
) -> Iterator[WebhookDelivery]:
    """Check and maintain the database of `app`, and deliver to its webhooks, in the block.

    Webhooks are not sent errors if anything is redacted. `watch` says when no lease may end: by
    default not in the first `SPARE_SECONDS`, because supervisors start processes again and again
    until the database is back, and then this one may be there before any heartbeat. The first of
    the `workers` of this process calls `on_failure` of leases that end.
    """
    hidden = bool(app.core.redaction.also(settings.redact))
    maintenance = MaintenanceThread(
        app,
        keep=settings.keep,
        without_errors=hidden,
        watch=watch or StallWatch(spare=SPARE_SECONDS),
        failures=workers[0].failures if workers else None,
    )
    delivery = WebhookDelivery(
        app, private=settings.webhooks_private, grace_seconds=settings.grace_seconds
    )

    def declare_types() -> None:
        app.core.declare(app.core.handlers.options())

    maintenance.start()
    delivery.start()
    try:
        with declared(declare_types, lambda: declare_schedules(app.core)):
            log_checks(app)
            yield delivery
    finally:
        maintenance.stop()  # first, because it does not wait as long as deliveries may
        delivery.stop()


@contextlib.contextmanager
def declared(*declarations: Callable[[], None]) -> Iterator[None]:
    """Make known what the program declares, once the database or server answers.

    This waits for the first try, so that others can ask for it when the program says it is there.
    """
    stop, tried = threading.Event(), threading.Event()

    def declare() -> None:
        for one in declarations:
            while not stop.is_set():
                try:
                    one()
                    break
                except (StoreUnavailable, Unauthorized):
                    tried.set()
                    stop.wait(DECLARE_SECONDS)
                except Exception as error:
                    expected = isinstance(error, TenureError)
                    log.warning(UNDECLARED, error, exc_info=None if expected else error)
                    break
        tried.set()

    thread = threading.Thread(target=declare, name="tenure-declare", daemon=True)
    thread.start()
    tried.wait(FIRST_TRY_SECONDS)
    try:
        yield
    finally:
        stop.set()
        thread.join(DECLARE_SECONDS)


def log_checks(app: Tenure) -> threading.Thread:
    """Log what `tenure doctor` finds wrong; on a thread, because the start need not wait for it."""

    def check_all() -> None:
        for check in app.check():
            if check.health is CheckResult.PROBLEM:
                log.error("%s: %s. %s", check.name, check.found, check.advice)
            elif check.health is CheckResult.WARNING and check.name not in NOT_LOGGED:
                log.warning("%s: %s. %s", check.name, check.found, check.advice)

    thread = threading.Thread(target=check_all, name="tenure-checks", daemon=True)
    thread.start()
    return thread


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` on the first SIGTERM or SIGINT of this process, end it at once on the second.

    A hangup is like the first one, however often it comes: the shell and the kernel each send one.
    `stop` is called once, because a signal may interrupt it, and no lock is taken twice. These are
    Python's signal handlers, not the loop's: they work while a handler blocks the loop.
    """
    asked = False

    def on_signal(number: int, _: object) -> None:
        nonlocal asked
        if not asked:
            asked = True
            stop()
        elif number != HANGUP:
            os._exit(ABORTED)

    before = {number: signal.signal(number, on_signal) for number in answered_stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextlib.contextmanager
def tuned_for_jobs() -> Iterator[None]:
    """Switch threads sooner, and keep the garbage collector from objects that exist now: they stay.

    Otherwise collections delay requests, and they cost a worker 4 % of its rate. Attempts and what
    their handlers raised live until they are reported: collected as often as Python does by
    default, they cost another 4 % where each job fails once.
    """
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
    gc.collect()
    gc.freeze()
    youngest, *older = gc.get_threshold()
    if youngest:  # 0: the application has switched collections off
        gc.set_threshold(max(youngest, YOUNG_OBJECTS), *older)
    try:
        yield
    finally:
        gc.set_threshold(youngest, *older)
        gc.unfreeze()


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on uvloop where it is installed, else on asyncio's loop.

    Tasks that are left are cancelled and get `LEFTOVER_SECONDS` to end. Unlike `asyncio.run`, this
    returns even if a handler continues, in a coroutine or in a thread of the loop.
    """
    loop = new_loop()
    try:
        loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            _, left = loop.run_until_complete(asyncio.wait(left, timeout=LEFTOVER_SECONDS))
            for task in left:
                _keep(task)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _keep(task: asyncio.Task[Any]) -> None:
    """Never destroy a task that does not end, not even when Python exits.

    Its coroutine catches every exception. Destroyed, it would get another one, and its next `await`
    would fail without a loop: it would continue for ever and use a whole processor.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(task))


def end_process() -> None:
    """End this process now if a handler left a thread behind that does not end.

    Python waits for such threads before it exits. Call this once all work is done and reported.
    """
    deadline = time.monotonic() + LEFTOVER_SECONDS
    threads = threading.enumerate()
    left = [t for t in threads if not t.daemon and t is not threading.current_thread()]
    for thread in left:
        thread.join(max(deadline - time.monotonic(), 0))
    if any(thread.is_alive() for thread in left):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


# --- inside a program -----------------------------------------------------------------------------

_entered: set[Running] = set()
"""Those of `with` that have not ended."""


def _end_all() -> None:
    """End the blocks that a program has left without their end: Python waits for their threads."""
    for running in [*_entered]:
        running._end()


# As concurrent.futures does, and before that, because handlers may still use its threads: what is
# registered last is called first. What is public comes after that: `atexit`, or a thread that waits
# for the main one. A Python without this would wait for the worker.
if _register := getattr(threading, "_register_atexit", None):
    _register(_end_all)


class Running:
    """A block in which a worker runs: `async with app.running():` or `with app.running():`."""

    def __init__(self, app: Tenure, settings: Settings) -> None:
        refuse_children()
        self._app = app
        self._settings = settings
        self._beside = ExitStack()
        self._worker = worker_of(app, settings)
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    async def __aenter__(self) -> Self:
        started = asyncio.ensure_future(asyncio.to_thread(self._begin))
        try:
            await asyncio.shield(started)
        except asyncio.CancelledError:
            while not started.done():  # its thread continues, also after a second cancel
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([started])
            await asyncio.to_thread(self._beside.close)
            raise
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._worker.request_stop()
        try:
            if self._task is not None:
                await self._task
        finally:
            await asyncio.to_thread(self._beside.close)
        self._raise_failure(raised[1])

    def __enter__(self) -> Self:
        self._begin()
        main = self._run()
        self._thread = threading.Thread(target=run_loop, args=(main,), name="tenure-worker")
        self._thread.start()
        _entered.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()
        self._raise_failure(error)

    def _end(self) -> None:
        _entered.discard(self)
        self._worker.request_stop()
        if self._thread is not None:
            self._thread.join()
        self._beside.close()

    def _begin(self) -> None:
        """Open the database, and do beside it what a worker process does; this may block."""
        self._app.open()
        self._beside.enter_context(maintained(self._app, self._settings, [self._worker]))

    async def _run(self) -> None:
        try:
            await work(self._app, self._worker)
        except Exception as error:
            log.exception("the worker in this program ended: no jobs run here any more")
            self._failure = error

    def _raise_failure(self, raised: object) -> None:
        """Raise what ended the worker, unless the block itself has raised."""
        if self._failure is not None and raised is None:
            raise self._failure
