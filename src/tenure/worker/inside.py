"""A worker inside a program that has its own life: a web application, a script, a notebook.

It installs no signal handlers and ends with its block. With `async with`, handlers run on the event
loop of the program, so that they share its connections; with `with`, on a loop in a thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - it registers its end
import logging
import threading
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

from tenure.app.app import Tenure
from tenure.settings import Settings
from tenure.worker.process import maintained, refuse_children, run_loop, work, worker_of

log = logging.getLogger(__name__)

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
