"""The worker: claims jobs, runs their handlers, reports how they ended. It decides nothing else.

It knows its source only as a `WorkSource`, so it works alike beside the database and over HTTP. One
event loop starts handlers and exchanges; `Heartbeat` has a thread.
"""

from __future__ import annotations

import contextvars
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack

import tenure
from tenure.errors import StoreMoved, TenureError
from tenure.handlers.registry import Handlers, enter
from tenure.rules.reports import ClaimRequest, WorkSource
from tenure.telemetry.tracing import Tracing
from tenure.values.names import MAX_LABEL_LENGTH
from tenure.values.redaction import NOTHING_HIDDEN, Redaction
from tenure.values.text import quantity
from tenure.worker.attempts import Attempts
from tenure.worker.exchanges import POLL_SECONDS, Exchanges, Room
from tenure.worker.heartbeat import Heartbeat
from tenure.worker.leases import LeaseBook, Wakeup
from tenure.worker.log import FailureCalls, WorkLog
from tenure.worker.note_writer import NoteWriter

log = logging.getLogger(__name__)

CANCEL_SECONDS = 1.0
"""How long handlers that were stopped at the end of the grace period may take to return."""
FINAL_REPORT_SECONDS = 5.0
UNRECORDED = (
    "stopping: the store has not recorded %s in time: such jobs may run again after the lease"
)
TURN_SECONDS = 1.0
PROGRESS_SECONDS = 5.0
"""How often a worker that stops logs how many jobs still run."""


class Worker:
    """Runs jobs until asked to stop. Make one per event loop, and `run` it once."""

    def __init__(
        self,
        source: WorkSource,
        handlers: Handlers,
        *,
        queues: Sequence[str] | None = None,
        room: Room | None = None,
        concurrency: int = 16,
        lease_seconds: float = 30.0,
        grace_seconds: float = 30.0,
        label: str = "",
        redaction: Redaction = NOTHING_HIDDEN,
        tracing: Tracing | None = None,
    ) -> None:
        """Make a worker for jobs from `source` that `handlers` can run.

        queues: where jobs are taken from, None for all. room: says that for each claim instead.
        concurrency: how many handlers run at once. lease_seconds: after which others take over the
        jobs of a worker that died. grace_seconds: that running handlers get when the worker is
        asked to stop. label: shown to people; the host and the process id by default. redaction:
        what the log hides of errors. tracing: makes a span for each attempt.
        """
        self.id = f"worker-{secrets.token_hex(8)}"  # random, because host names and pids come back
        self._grace_seconds = grace_seconds
        self._source = source
        self._stop_asked = False  # an Event has a lock, and a signal may interrupt its holder
        self._busy_at = 0.0  # when it had a job last, or did not know, by the monotonic clock
        self._wakeup = Wakeup()
        self._leases = LeaseBook(concurrency, self.id, source.database)
        self._lifespans = handlers.hooks.lifespans
        self.failures = FailureCalls(handlers.hooks.on_failure)
        worklog = WorkLog(self.id, redaction, self.failures)
        self._writer = NoteWriter(source)
        self._attempts = Attempts(
            handlers, self._leases, concurrency, self._wakeup, worklog, self._writer, tracing
        )
        self._heart = Heartbeat(source, self._leases, lease_seconds, self._wakeup, worklog)
        self._exchanges = Exchanges(
            source,
            self._attempts,
            self._leases,
            self._heart,
            self._wakeup,
            worklog,
            handlers=handlers,
            concurrency=concurrency,
            room=room,
            request=ClaimRequest(
                worker=self.id,
                label=label or _label_here(),
                limit=0,
                slots=concurrency,
                version=tenure.__version__,
                lease_seconds=lease_seconds,
                queues=tuple(queues) if queues else None,
                traces=tracing is not None,
            ),
        )

    def request_stop(self) -> None:
        """Ask the worker to finish. Safe from any thread and from a signal handler."""
        self._stop_asked = True
        self._leases.close()  # at once, because a claim may be about to be answered
        self._wakeup.notify()

    def turns(self) -> bool:
        """Whether the event loop answers within a second. Call it on another thread."""
        turned = threading.Event()
        return self._wakeup.call(turned.set) and turned.wait(TURN_SECONDS)

    def troubles(self) -> list[str]:
        """Return why it claims no jobs at present, for people; safe from any thread."""
        if self._stop_asked:
            return ["it is stopping"]
        return [*self._exchanges.troubles(), *self._attempts.fitness.troubles()]

    async def run(self, max_idle_seconds: float | None = None) -> None:
        """Work until `request_stop`, then let running handlers finish and report everything.

        Stops also once there was no job to run for `max_idle_seconds`; None: never. Raises
        StoreMoved, after the handlers were stopped, if the jobs are in another database now.
        """
        self._wakeup.attach()
        async with AsyncExitStack() as stack:
            for make in self._lifespans:
                await enter(stack, make())
            self._attempts.start_in(contextvars.copy_context())
            self.failures.start()
            try:
                await self._work(max_idle_seconds)
            finally:
                await self.failures.finish()

    async def _work(self, max_idle_seconds: float | None) -> None:
        self._busy_at = time.monotonic()
        stop_listening = self._listen()
        self._heart.start()
        try:
            while not self._stop_asked and not self._exchanges.moved:
                self._exchanges.step()
                pause = self._exchanges.pause()
                if max_idle_seconds is not None:
                    pause = min(pause, self._idle_time_left(max_idle_seconds))
                await self._wakeup.wait(pause)
            if self._exchanges.moved:
                await self._abandon(self._exchanges.moved)
            await self._drain()
        finally:
            self._heart.stop()
            self._writer.stop()
            stop_listening()
            self._attempts.close()
            self._exchanges.cancel()
            self._heart.join(5)

    def _idle_time_left(self, max_idle_seconds: float) -> float:
        """Return how long it may still be without a job; if it was for too long, ask it to stop."""
        now = time.monotonic()
        if not self._leases.is_empty or self._exchanges.troubles():  # then jobs may be waiting
            self._busy_at = now
        left = self._busy_at + max_idle_seconds - now
        if left <= 0:
            log.info("stopping: there was no job to run for %g s", max_idle_seconds)
            self.request_stop()
        return max(left, 0)

    def _listen(self) -> Callable[[], None]:
        """Listen for work and cancels; a source that does not answer is no reason not to start."""
        ends = ExitStack()
        self._exchanges.listen()
        ends.callback(self._exchanges.stop_listening)
        try:
            ends.callback(self._source.on_end(self.id, self._heart.beat_now))
        except TenureError as error:
            log.warning("cancels are noticed with the heartbeats only: %s", error)
        return ends.close

    # --- stopping

    async def _abandon(self, error: StoreMoved) -> None:
        """Stop the handlers, whose leases are elsewhere now, and raise the error."""
        running = quantity(self._leases.running, "handler")
        log.error("this worker ends, and %s with it: %s", running, error)
        self._leases.close()
        self._leases.lose({lease_id: "" for _, lease_id in self._leases.to_renew()})
        deadline = time.monotonic() + CANCEL_SECONDS
        self._attempts.collect()
        while self._leases.running and time.monotonic() < deadline:
            await self._wakeup.wait(POLL_SECONDS)
            self._attempts.collect()
        raise error

    async def _drain(self) -> None:
        """Hand back what has not started, let handlers finish, then interrupt them; report all.

        Nothing is claimed any more from the first line of the log that says "stopping". Leases
        whose outcome the store does not record in time run out.
        """
        self._exchanges.cancel(held_only=True)
        self._attempts.announce_stop()
        await self._exchanges.finish_claims()
        await self._drain_running()
        self._attempts.interrupt_all()
        deadline = time.monotonic() + CANCEL_SECONDS
        while self._leases.running and time.monotonic() < deadline:
            await self._drain_step(deadline)
        deadline = time.monotonic() + FINAL_REPORT_SECONDS
        while (self._leases.ready or self._is_reporting()) and time.monotonic() < deadline:
            await self._drain_step(deadline)
        if unrecorded := self._leases.unrecorded:
            log.error(UNRECORDED, quantity(unrecorded, "outcome"))
        await self._exchanges.leave()

    async def _drain_running(self) -> None:
        """Wait for running handlers as long as the grace period, and log how many are left."""
        if not self._leases.running:
            log.info("stopping: no job runs")
            return
        deadline = time.monotonic() + self._grace_seconds
        log_at = 0.0
        while (running := self._leases.running) and (now := time.monotonic()) < deadline:
            if now >= log_at:
                log_at = now + PROGRESS_SECONDS
                left = deadline - now
                log.info("stopping: waits up to %.0f s for %s", left, quantity(running, "job"))
            await self._drain_step(deadline)

    async def _drain_step(self, deadline: float) -> None:
        self._leases.release_unstarted()
        self._exchanges.step()
        if self._leases.running or self._is_reporting():
            await self._wakeup.wait(min(max(deadline - time.monotonic(), 0.001), POLL_SECONDS))

    def _is_reporting(self) -> bool:
        return bool(self._leases.unreported or self._exchanges.under_way)


def _label_here() -> str:
    """Name this machine and process; Linux takes any bytes as the name of a machine."""
    return f"{ascii(socket.gethostname())[1:-1]}:{os.getpid()}".strip()[-MAX_LABEL_LENGTH:]
