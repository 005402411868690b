"""The slots of a worker: jobs that are leased here, waiting, running, or being stopped.

Everything is called on the event loop but what threads call, see there. Each attempt
gets exactly one outcome, passed to `report`; whatever its handler does after that is ignored.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from tenure.jobs.handlers import Handlers, JobContext
from tenure.jobs.work import Lease, Outcome, Report
from tenure.telemetry.logs import RUNNING
from tenure.telemetry.tracing import Tracing, enter
from tenure.worker.executors import (
    ChildCall,
    Children,
    Ending,
    Failure,
    Original,
    Success,
    Task,
    Threads,
    call_in_thread,
    failure,
    place_of,
    success,
)
from tenure.worker.log import WorkLog, fields_of

log = logging.getLogger(__name__)

_COMPLETED = Outcome.COMPLETED
UNWIND_SECONDS = 5.0
"""How long a cancelled coroutine keeps its slot for its last words."""


class Attempt:
    """One lease being worked on."""

    __slots__ = (
        *("call", "context", "due", "ended", "lease", "on_thread", "since", "started", "task"),
        *("span", "spans_here", "timer", "worker"),
    )

    def __init__(self, lease: Lease, since: float, worker: str) -> None:
        self.lease = lease
        self.worker = worker
        self.span: Any = None  # where somebody traces
        self.spans_here: Any = None  # then the context of those that its handler makes
        self.started: float | None = None  # by the monotonic clock
        self.since = since  # when it was claimed, by the monotonic clock
        self.due = math.inf  # when its time is over, by the monotonic clock
        self.ended = False  # its outcome is decided; whatever the handler does now is ignored
        self.task: asyncio.Task[None] | None = None
        self.call: ChildCall | None = None
        self.context: JobContext | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.on_thread = False

    def log_fields(self) -> Mapping[str, Any]:
        """What is added to the lines that its handler logs."""
        return fields_of(self.lease, self.worker)


class Attempts:
    """Runs up to `concurrency` handlers at once, for the worker named `actor`.

    `report` gets every outcome, `forget` every lease that needs none any more, and `wake` is called
    on the loop, `ring` from threads, when the worker has something to look at.
    """

    def __init__(
        self,
        handlers: Handlers,
        concurrency: int,
        *,
        actor: str,
        worklog: WorkLog,
        tracing: Tracing | None,
        report: Callable[[Report], None],
        forget: Callable[[str], None],
        wake: Callable[[], None],
        notify: Callable[[], None],
    ) -> None:
        self.ready: deque[Attempt] = deque()  # claimed, not started
        self.running: dict[str, Attempt] = {}  # by lease id
        self._handlers = handlers
        self._concurrency = concurrency
        self._actor = actor
        self._log = worklog
        self._tracing = tracing
        self._send = report
        self._forget = forget
        self._wake = wake
        self._notify = notify
        self._ended: deque[tuple[Attempt, Ending]] = deque()  # from threads, for the loop
        self._lost: deque[str] = deque()  # leases that a heartbeat found lost
        self._loop: asyncio.AbstractEventLoop | None = None  # once a handler has been started
        self._threads = Threads(concurrency, self.deliver, "tenure-job")
        self._children = Children()
        self._original = Original()

    def close(self) -> None:
        """Let go of idle threads and child processes."""
        self._threads.close()
        self._children.close()

    # --- what the worker asks

    def count(self) -> int:
        """Jobs here, waiting or running."""
        return len(self.ready) + len(self.running)

    def has(self, lease_id: str) -> bool:
        """Whether a lease is here, waiting or running."""
        return lease_id in self.running or any(
            a.lease.lease_id == lease_id for a in list(self.ready)
        )

    def take(self, leases: Sequence[Lease]) -> None:
        """Queue leased jobs and start as many as there are free slots."""
        now = time.monotonic()
        self.ready.extend(Attempt(lease, now, self._actor) for lease in leases)
        self._start_ready()

    def collect(self) -> None:
        """Take in what threads delivered and what heartbeats found lost."""
        while self._ended:
            self._end(*self._ended.popleft())
        while self._lost:
            self._stop_lost(self._lost.popleft())

    def oldest_wait(self) -> float:
        """Seconds that the first unstarted job has been waiting here; 0 if there is none."""
        try:
            return time.monotonic() - self.ready[0].since
        except IndexError:
            return 0.0

    def hand_back(self) -> None:
        """Release every job that has not started."""
        for report in self.take_waiting():
            self._send(report)

    def stop_all(self, why: str) -> None:
        """Fail and stop whatever still runs."""
        for attempt in list(self.running.values()):
            self._stop(attempt, Failure(why))

    # --- what threads call

    def start_no_more(self) -> None:
        """Whatever is or gets ready from now on is only there to be handed back."""
        self._concurrency = 0

    def deliver(self, attempt: Attempt, ending: Ending) -> None:
        """A handler on a thread is through."""
        self._ended.append((attempt, ending))
        self._notify()

    def lose(self, lease_id: str) -> None:
        """A heartbeat found that somebody ended this lease."""
        self._lost.append(lease_id)

    # --- what both call: the heartbeat speaks for a loop that is blocked

    def take_waiting(self) -> list[Report]:
        """Take out every job that has not started; the reports that release them."""
        reports = []
        with suppress(IndexError):  # thread and loop may both be at it: each job goes to one
            while True:
                reports.append(self.release(self.ready.popleft().lease))
        return reports

    def release(self, lease: Lease) -> Report:
        """The report that hands a job back unrun."""
        report = Report(lease.id, lease.lease_id, Outcome.RELEASED, None, "", True, self._actor)
        self._log.ended(lease, report, None)
        return report

    def overdue(self, seconds: float) -> set[str]:
        """Leases of handlers that should have been stopped `seconds` ago and were not."""
        before = time.monotonic() - seconds
        running = list(self.running.values())
        return {a.lease.lease_id for a in running if a.due < before and not a.ended}

    def lease_of(self, task: asyncio.Task[Any]) -> Lease | None:
        """The lease of the handler that runs as this task."""
        running = list(self.running.values())
        return next((attempt.lease for attempt in running if attempt.task is task), None)

    # --- running handlers

    def _start_ready(self) -> None:
        while self.ready and len(self.running) < self._concurrency:
            try:
                attempt = self.ready.popleft()
            except IndexError:  # the heartbeat has just handed it back
                return
            self.running[attempt.lease.lease_id] = attempt
            try:
                self._start(attempt)
            except BaseException as error:
                self._settle(attempt, failure(error))

    def _start(self, attempt: Attempt) -> None:
        lease = attempt.lease
        handler = self._handlers.find(lease.type)
        if handler is None:  # not ours to judge: another worker may know the type
            attempt.ended = True
            del self.running[lease.lease_id]
            self._send(self.release(lease))
            return
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        attempt.started = time.monotonic()
        if lease.timeout is not None:
            attempt.due = attempt.started + lease.timeout
            attempt.timer = loop.call_later(lease.timeout, self._time_out, attempt)
        if self._tracing is not None:
            attempt.span, attempt.spans_here = self._tracing.attempt(lease, self._actor)
        if handler.in_process:
            task = Task(
                *place_of(handler), lease.payload, attempt.log_fields(), self._carried(attempt)
            )
            attempt.call = ChildCall(self._children, task)
            self._threads.submit(attempt, attempt.call.run)
            return
        arguments = handler.arguments(lease.payload)
        function: Callable[..., Any] = handler.function
        if handler.wants_context:
            attempt.context = context_of(lease)
            context, plain = attempt.context, handler.function

            def function(**arguments: Any) -> Any:
                return plain(context, **arguments)

        if handler.is_async:
            attempt.task = loop.create_task(self._run_async(attempt, function, arguments))
        else:
            attempt.on_thread = True
            self._threads.submit(
                attempt, lambda: call_in_thread(function, arguments, attempt, attempt.spans_here)
            )

    def _carried(self, attempt: Attempt) -> str | None:
        """What names the span of an attempt to a child process."""
        return None if self._tracing is None else self._tracing.carried(attempt.spans_here)

    async def _run_async(
        self, attempt: Attempt, function: Callable[..., Any], arguments: dict[str, Any]
    ) -> None:
        RUNNING.set(attempt)
        if attempt.spans_here is not None:
            enter(attempt.spans_here)
        try:
            ending: Ending = success(await function(**arguments))
        except BaseException as error:
            ending = failure(error)
        self._original.end_if_copy()
        self._settle(attempt, ending)
        if self.ready:
            self._start_ready()
        self._wake()

    def _end(self, attempt: Attempt, ending: Ending) -> None:
        """A handler is through: keep its outcome for the next turn and start the next job."""
        self._settle(attempt, ending)
        self._start_ready()

    def _settle(self, attempt: Attempt, ending: Ending) -> None:
        if attempt.timer is not None:
            attempt.timer.cancel()
        self.running.pop(attempt.lease.lease_id, None)
        if attempt.ended:  # decided before: timed out, lost, or shut down
            return
        attempt.ended = True
        if isinstance(ending, Success):
            lease = attempt.lease
            report = Report(
                lease.id, lease.lease_id, _COMPLETED, ending.result, "", True, self._actor
            )
            if self._log.detailed:
                self._log.ended(lease, report, _ran_for(attempt))
            if attempt.span is not None and self._tracing is not None:
                self._tracing.ended(attempt.span, None)
            self._send(report)
        else:
            self._report(attempt, Outcome.FAILED, error=ending.error, retryable=ending.retryable)

    def _report(
        self,
        attempt: Attempt,
        outcome: Outcome,
        result: str | None = None,
        error: str = "",
        retryable: bool = True,
    ) -> None:
        lease = attempt.lease
        report = Report(lease.id, lease.lease_id, outcome, result, error, retryable, self._actor)
        self._log.ended(lease, report, _ran_for(attempt))
        self._end_span(attempt, error)
        self._send(report)

    def _end_span(self, attempt: Attempt, error: str) -> None:
        if attempt.span is not None and self._tracing is not None:
            self._tracing.ended(attempt.span, self._log.redacted(error, attempt.lease))

    def _time_out(self, attempt: Attempt) -> None:
        self._stop(attempt, Failure(f"timed out after {attempt.lease.timeout:g} s"))

    def _stop(self, attempt: Attempt, why: Failure | None) -> None:
        """End an attempt from outside: report `why` (None: report nothing) and stop its handler.

        A coroutine is cancelled and a child killed. A thread cannot be stopped: it is left to
        itself and another takes its place.
        """
        if attempt.ended:
            return
        attempt.ended = True
        if attempt.timer is not None:
            attempt.timer.cancel()
        if attempt.context is not None:
            attempt.context.cancelled = True
        if why is not None:
            self._report(attempt, Outcome.FAILED, error=why.error, retryable=why.retryable)
        else:
            self._end_span(attempt, "LeaseLost: somebody else ended the lease")
            self._forget(attempt.lease.lease_id)
        if attempt.task is not None:
            attempt.task.cancel()  # the slot is free when the coroutine is through, or never began
            attempt.task.add_done_callback(lambda _: self._end(attempt, Failure("")))
            attempt.timer = attempt.task.get_loop().call_later(UNWIND_SECONDS, self._leave, attempt)
        elif attempt.call is not None:
            attempt.call.kill()
        elif attempt.on_thread:
            self._threads.abandon()
            self._leave(attempt)
        self._wake()

    def _leave(self, attempt: Attempt) -> None:
        """A handler goes on though it was stopped: leave it to itself, its slot is free."""
        lease = attempt.lease
        del self.running[lease.lease_id]
        log.warning("job %s (%s) does not end: its handler is left behind", lease.id, lease.type)
        self._start_ready()

    def _stop_lost(self, lease_id: str) -> None:
        """A heartbeat found that somebody ended the lease: cancelled, or expired."""
        attempt = self.running.get(lease_id)
        if attempt is not None:
            log.warning("the lease on job %s is lost: its handler is stopped", attempt.lease.id)
            self._stop(attempt, None)
            return
        for waiting in list(self.ready):
            if waiting.lease.lease_id == lease_id:
                self.ready.remove(waiting)
                self._forget(lease_id)
                return


def _ran_for(attempt: Attempt) -> float | None:
    return None if attempt.started is None else time.monotonic() - attempt.started


def context_of(lease: Lease) -> JobContext:
    """What the handler may know of its attempt."""
    deadline: datetime | None = None
    if lease.timeout is not None:  # for the handler to compare with its own clock, as a courtesy
        deadline = datetime.now(UTC) + timedelta(seconds=lease.timeout)  # noqa: TID251
    return JobContext(
        id=lease.id,
        type=lease.type,
        queue=lease.queue,
        attempt=lease.attempts,
        max_retries=lease.max_retries,
        token=lease.token,
        deadline=deadline,
    )
