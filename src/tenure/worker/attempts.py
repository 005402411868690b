"""Runs attempts: starts their handlers, stops them, and decides how each of them ended.

Handlers run on the event loop, in threads or in child processes. Everything here is called on the
event loop, except `deliver`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec.structs import replace

from tenure.app.within import LeaseFence
from tenure.errors import InvalidInput
from tenure.events import Completed
from tenure.handlers.context import Stopped
from tenure.handlers.registry import Handler, Handlers, bound
from tenure.handlers.results import Ending, success
from tenure.rules.reports import Outcome, Report
from tenure.telemetry.logs import LOG_FIELDS
from tenure.telemetry.tracing import Tracing, enter
from tenure.values.names import RESERVED
from tenure.wire import reports
from tenure.worker.child import ChildTask, context_of, said
from tenure.worker.fitness import Fitness, NotStarted
from tenure.worker.leases import CLAIMED, STARTED, Attempt, LeaseBook, Wakeup
from tenure.worker.log import NOT_COMMITTED, WorkLog
from tenure.worker.note_writer import AttemptSource, NoteWriter
from tenure.worker.processes import ChildCall, Children
from tenure.worker.threads import Original, Threads, call_in_thread, timed_out

log = logging.getLogger(__name__)

UNWIND_SECONDS = 5.0
"""How long a cancelled coroutine keeps its slot before it is left behind."""

INTERRUPTED = "shutdown: the worker stopped before the job had finished"

_COMPLETED = Outcome.COMPLETED


class Attempts:
    """Runs the attempts of a `LeaseBook`, as many at once as that has slots."""

    def __init__(
        self,
        handlers: Handlers,
        leases: LeaseBook,
        concurrency: int,
        wakeup: Wakeup,
        worklog: WorkLog,
        notes: NoteWriter,
        tracing: Tracing | None,
        *,
        threads: type[Threads] = Threads,
        children: bool = True,
    ) -> None:
        """`threads` run plain handlers. Without `children` all run in this process."""
        self._handlers = handlers
        self._leases = leases
        self._wakeup = wakeup
        self._log = worklog
        self._notes = notes
        self._tracing = tracing
        self.fitness = Fitness()
        self._delivered: deque[tuple[Attempt, Ending | NotStarted]] = deque()  # from threads
        self._threads = threads(concurrency, self.deliver)
        self._children = Children()
        self._has_children = children
        self._original = Original()
        self._is_starting = False
        self._context = contextvars.copy_context()

    def start_in(self, context: contextvars.Context) -> None:
        """Let coroutines begin with the variables of a context, and so with none of another job."""
        self._context = context

    def close(self) -> None:
        """Release idle threads and child processes."""
        self._threads.close()
        self._children.close()

    def admit(self) -> None:
        """Queue the attempts that have arrived and start as many as there are free slots."""
        self._leases.admit()
        self._start_ready()

    def collect(self) -> None:
        """Finish attempts whose thread has returned; stop those whose lease is lost."""
        while self._delivered:
            self._finish_and_start_next(*self._delivered.popleft())
        for attempt, event in self._leases.take_lost():
            self._stop_lost(attempt, event)

    def announce_stop(self) -> None:
        """Say to every handler that has a context that the worker stops."""
        for attempt in self._leases.in_slots():
            if attempt.context is not None:
                attempt.context.stopping = True

    def interrupt_all(self) -> None:
        """Hand back every running attempt, or fail it as its handler wants; stop its handler."""
        self.collect()  # some may have returned while the loop was blocked
        for attempt in self._leases.in_slots():
            handler = self._handlers.find(attempt.lease.type)
            if self._has_returned(attempt):
                continue
            if handler is not None and handler.on_interrupt == "fail":
                self._stop(attempt, INTERRUPTED, "shutdown")
            elif attempt.state is STARTED:
                report = attempt.outcome(Outcome.INTERRUPTED)
                self._settle(attempt, report, INTERRUPTED, free=False)
                self._stop_handler(attempt, "shutdown")

    def deliver(self, attempt: Attempt, ending: Ending | NotStarted) -> None:
        """Hand over how a handler ended, or that it did not start. Called by threads."""
        self._delivered.append((attempt, ending))
        self._wakeup.notify()

    # --- claimed -> started

    def _start_ready(self) -> None:
        if self._is_starting:  # by a handler that an eager task has run to its end in here
            return
        self._is_starting = True
        try:
            while (attempt := self._leases.start_next()) is not None:
                self._try(attempt, self._start)
        finally:
            self._is_starting = False

    def _try(self, attempt: Attempt, start: Callable[[Attempt], None]) -> None:
        try:
            start(attempt)
        except NotStarted as trouble:
            self._finish(attempt, trouble)
        except BaseException as error:
            self._finish(attempt, attempt.failure(error))

    def _start(self, attempt: Attempt) -> None:
        lease = attempt.lease
        handler = self._handlers.find(lease.type)
        if handler is None or self.fitness.is_unfit(lease.type):  # another worker may run it
            self._leases.end(attempt, attempt.outcome(Outcome.RELEASED), free=True)
            return
        if self._tracing is not None:
            attempt.span, attempt.trace_context = self._tracing.attempt(lease, attempt.worker)
        if not self._has_children:
            self._start_here(attempt, handler)
        elif handler.in_process or (lease.alone and handler.is_found_by_name()):
            self._start_in_child(attempt, handler)
        elif lease.alone and not lease.type.startswith(RESERVED):  # its own run here
            self._start_here_after_all(attempt, handler, "it cannot be imported by its name")
        else:
            self._start_here(attempt, handler)

    def _start_here_after_all(self, attempt: Attempt, handler: Handler, why: str) -> None:
        """Start a handler that should be in a child process, where that cannot be."""
        lease = attempt.lease
        log.warning(
            "job %s (%s) may have ended a worker, and still runs in no child process: %s",
            *(lease.id, lease.type, why),
        )
        attempt.child = None
        self._start_here(attempt, handler)

    def _start_clock(self, attempt: Attempt) -> None:
        """Let the time of the attempt begin, which is before its handler starts."""
        attempt.started_at = time.monotonic()
        if (timeout := attempt.lease.timeout) is not None and attempt.state is STARTED:
            attempt.due = attempt.started_at + timeout
            if (loop := self._wakeup.loop) is not None:
                attempt.timer = loop.call_later(timeout, self._time_out, attempt)

    def _start_in_child(self, attempt: Attempt, handler: Handler) -> None:
        traced = self._tracing
        traceparent = None if traced is None else traced.carried(attempt.trace_context)
        task = ChildTask(
            handler.function.__module__,
            handler.function.__qualname__,
            attempt.lease,
            attempt.log_fields(),
            traceparent,
            attempt.worker,
            self._leases.database,
        )
        loop = asyncio.get_running_loop()
        started = partial(loop.call_soon_threadsafe, self._start_clock, attempt)
        source = AttemptSource(attempt.lease, self._notes)
        attempt.child = ChildCall(
            self._children, task, started, source, alone=not handler.in_process
        )
        self._threads.submit(attempt, attempt.child.run)

    def _start_here(self, attempt: Attempt, handler: Handler) -> None:
        self._start_clock(attempt)
        arguments = handler.arguments(attempt.lease.payload)
        function = handler.function
        if handler.wants_context or handler.around:
            source = AttemptSource(attempt.lease, self._notes)
            attempt.fence = self._fence(attempt)
            attempt.context = context_of(attempt.lease, attempt.fence, source)
            function = bound(handler, attempt.context)
        if handler.is_async:
            running = self._run_coroutine(attempt, handler, function, arguments)
            task = self._context.run(asyncio.get_running_loop().create_task, running)
            attempt.task = None if task.done() else task  # an eager one may be
        else:
            call = partial(call_in_thread, handler, function, arguments, attempt)
            self._threads.submit(attempt, call)
            attempt.on_thread = True
            self.fitness.started(attempt.lease.type)

    def _fence(self, attempt: Attempt) -> LeaseFence:
        lease, database, traced = attempt.lease, self._leases.database, self._tracing
        traceparent = None if traced is None else traced.carried(attempt.trace_context)
        return LeaseFence(lease, attempt.worker, database, traceparent, self._handlers.defaults)

    async def _run_coroutine(
        self,
        attempt: Attempt,
        handler: Handler,
        function: Callable[..., Any],
        arguments: dict[str, Any],
    ) -> None:
        LOG_FIELDS.set(attempt.log_fields)
        if attempt.trace_context is not None:
            enter(attempt.trace_context)
        try:
            ending = success(await function(**arguments))
        except BaseException as error:
            ending = attempt.failure(error, handler)
        self._original.end_if_copy()
        self._finish_and_start_next(attempt, ending)
        self._wakeup.set()

    # --- started -> ended

    def _finish_and_start_next(self, attempt: Attempt, ending: Ending | NotStarted) -> None:
        self._finish(attempt, ending)
        self._start_ready()

    def _finish(self, attempt: Attempt, ending: Ending | NotStarted) -> None:
        """Free the slot of a handler that has returned; its ending counts unless it was stopped."""
        child = attempt.child
        if child and child.alone and isinstance(ending, NotStarted) and attempt.state is STARTED:
            handler = self._handlers.find(attempt.lease.type)
            assert handler is not None  # it was found before the child started
            again = partial(self._start_here_after_all, handler=handler, why=str(ending))
            self._try(attempt, again)
            return
        if attempt.timer is not None:
            attempt.timer.cancel()
        attempt.task = None  # its context refers to the attempt: do not leave a cycle
        if attempt.state is not STARTED:
            self._leases.free(attempt)
        elif isinstance(ending, NotStarted):
            self.fitness.failed(attempt.lease.type, str(ending))
            self._end_span(attempt, f"not started: {ending}")
            self._leases.end(attempt, attempt.outcome(Outcome.RELEASED), free=True)
        else:
            if attempt.child is not None:
                self.fitness.started(attempt.lease.type)
            self._end(attempt, ending, free=True)

    def _end(self, attempt: Attempt, ending: Ending, *, free: bool) -> None:
        error, flaw = ending.error, ending.flaw
        fence = attempt.fence
        if error is None and (ending.completes or (fence is not None and fence.completes)):
            # The worker does not know whether that was committed, so it asks with this report.
            error = None if fence is None else fence.parked
            report = attempt.outcome(Outcome.FAILED, None, error or NOT_COMMITTED)
            flaw = flaw if fence is None else fence.flaw
            if error is None and ending.result not in (None, fence and fence.result):
                self._log.ignored(attempt.lease)
        elif error is None:
            report = attempt.outcome(_COMPLETED, ending.result)
            if fence is not None or ending.jobs is not None:
                report = self._with_follow_ups(attempt, report, ending)
        else:
            parked = Outcome.SNOOZED if ending.wait is None else Outcome.SUSPENDED
            outcome = parked if ending.snoozed else Outcome.FAILED
            how = (None, error, ending.retryable, ending.delay, ending.pause, ending.wait)
            report = attempt.outcome(outcome, *how)
            error = None if ending.snoozed else error
        if flaw is not None:
            self._log.unstorable(attempt.lease, flaw)
        self._settle(attempt, report, error, free=free)

    def _with_follow_ups(self, attempt: Attempt, report: Report, ending: Ending) -> Report:
        """Return the report with the jobs that its handler adds, or one of a failure."""
        fence = attempt.fence or self._fence(attempt)
        try:
            if ending.jobs is not None:  # from a child, which does not have every handler
                reports.read(ending.jobs, fence.follow_ups())
        except InvalidInput as error:
            return attempt.outcome(Outcome.FAILED, None, said(error))
        return report if fence.jobs is None else replace(report, jobs=fence.signed())

    def _settle(self, attempt: Attempt, report: Report, error: str | None, *, free: bool) -> None:
        """Decide how an attempt ended that had started."""
        if self._notes.is_used:
            report = replace(report, notes=self._notes.take(report.lease_id))
        if attempt.started_at is not None:
            attempt.seconds = time.monotonic() - attempt.started_at
        if attempt.span is not None:
            self._end_span(attempt, error)
        self._leases.end(attempt, report, free=free)

    def _end_span(self, attempt: Attempt, error: str | None) -> None:
        if self._tracing is None or attempt.span is None:
            return
        try:
            shown = None if error is None else self._log.redacted(error, attempt.lease)
            self._tracing.ended(attempt.span, shown)
        except Exception:  # from a span processor of the program; the job must settle
            log.exception("the span of job %s could not be ended", attempt.lease.id)

    def _time_out(self, attempt: Attempt) -> None:
        self.collect()  # it may have returned in time, while the loop was blocked
        if self._has_returned(attempt):
            return
        who = "the child process " if attempt.lease.alone and attempt.child else ""
        self._stop(attempt, f"{who}{timed_out(attempt)}", "timeout")

    def _has_returned(self, attempt: Attempt) -> bool:
        """Whether a handler has returned whose child has still to exit; then that counts."""
        ending = None if attempt.child is None else attempt.child.ending
        if ending is not None and attempt.state is STARTED:
            self._end(attempt, ending, free=False)
        return ending is not None

    def _stop(self, attempt: Attempt, error: str, why: Stopped) -> None:
        """Fail an attempt whose handler still runs, and stop the handler."""
        if attempt.state is STARTED:
            self._end(attempt, Ending(error=error), free=False)
            self._stop_handler(attempt, why)

    def _stop_lost(self, attempt: Attempt, event: str) -> None:
        runs = attempt.state is STARTED
        if runs and event == Completed.name:
            return  # in a transaction of its handler, which still runs after the commit
        if runs or attempt.state is CLAIMED:
            self._leases.forget([attempt.lease.lease_id])
        if runs and event == "cancelled":
            log.info("job %s was cancelled: its handler is stopped", attempt.lease.id)
            self._end_span(attempt, "cancelled")
            self._stop_handler(attempt, "cancelled")
        elif runs:
            log.warning("the lease on job %s is lost: its handler is stopped", attempt.lease.id)
            self._end_span(attempt, "LeaseLost: the lease was ended elsewhere")
            self._stop_handler(attempt, "lost")

    def _stop_handler(self, attempt: Attempt, why: Stopped) -> None:
        """Cancel a coroutine or kill a child. A thread cannot be stopped: replace it."""
        if attempt.timer is not None:
            attempt.timer.cancel()
        if attempt.context is not None:
            attempt.context.stopped = why
        if attempt.task is not None:
            attempt.task.cancel()  # its slot is free once it has returned, or if it never began
            attempt.task.add_done_callback(lambda _: self._finish_and_start_next(attempt, Ending()))
            loop = attempt.task.get_loop()
            attempt.timer = loop.call_later(UNWIND_SECONDS, self._leave_behind, attempt)
        elif attempt.child is not None:
            attempt.child.kill()
        elif attempt.on_thread:
            self._threads.abandon()
            self._leases.free(attempt)  # at once: it may never end
            self._start_ready()
            loop = asyncio.get_running_loop()
            attempt.timer = loop.call_later(UNWIND_SECONDS, self._leave_behind, attempt)
        self._wakeup.set()

    def _leave_behind(self, attempt: Attempt) -> None:
        """Free the slot of a handler that continues although it was stopped."""
        self._leases.free(attempt)
        lease = attempt.lease
        log.warning("job %s (%s) does not end: its handler is left behind", lease.id, lease.type)
        self._start_ready()
