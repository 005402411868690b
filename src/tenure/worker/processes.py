"""Child processes for handlers with `process=True`. A child can be killed without harm to others.

Every call has exactly one ending, whatever the handler does to its process.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import msgspec

from tenure.handlers.results import Ending, failure
from tenure.rules.steps import StepSource
from tenure.telemetry import logs
from tenure.worker.child import (
    READY,
    STOP_SIGNALS,
    ChildAnswer,
    ChildTask,
    encode,
    read_answer,
    reply_to,
    said,
    serve_calls,
)
from tenure.worker.fitness import NotStarted

CHILD = "tenure-child"
SECRETS = ("TENURE_TOKEN", "TENURE_TOKEN_FILE")
"""Variables of the environment that a process removes before it starts a child, which can read the
environment that it was started with. The address of the database stays: the module of a handler is
imported there and may need it to open its queue."""
MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Longest message from a child; results, errors and jobs to add have lower limits."""
EXIT_SECONDS = 1.0
"""How long a child that has no more to do may take to exit. Python's exit handlers run in this time
and send the last spans and log lines."""
MAX_ALONE = 8
"""Children at once for handlers that are in one only for now. A worker with a thousand slots for
coroutines has no memory for as many processes."""
CHILD_CHECK_SECONDS = 0.5
"""How often a thread that waits for a child checks that the child is alive."""
START_SECONDS = 60.0
"""How long a child may take to start and to import the module of a handler."""


class Children:
    """Child processes that are reused; each runs one call at a time."""

    def __init__(self) -> None:
        self.turns = threading.Semaphore(MAX_ALONE)
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[Child] = []
        self._lock = threading.Lock()
        self._closed = False

    def take(self) -> Child:
        """Return a free child."""
        while True:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            if child is None:
                return Child.start(self._context)
            if child.process.is_alive():
                return child
            child.pipe.close()

    def give_back(self, child: Child, *, keep: bool) -> None:
        """Keep a child for the next call; with `keep` false only if none is kept."""
        with self._lock:
            if not self._closed and (keep or not self._idle):
                self._idle.append(child)
                return
        child.retire()

    def close(self) -> None:
        """End the idle children now, and the others when they are given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.pipe.close()  # asks the child to end
        deadline = time.monotonic() + EXIT_SECONDS
        for child in idle:
            wait([child.process.sentinel], max(deadline - time.monotonic(), 0))
            child.end()


class ChildCall:
    """One call in a child process. `run` blocks; other threads may call `kill` at any time."""

    def __init__(
        self,
        children: Children,
        task: ChildTask,
        on_start: Callable[[], object],
        source: StepSource,
        *,
        alone: bool,
    ) -> None:
        """The thread of `run` calls `on_start` when the handler starts, and the `source`.

        `alone`: the handler is in a child for this attempt only.
        """
        self.alone = alone
        self.ending: Ending | None = None
        """How the handler has ended: its child may still have to exit."""
        self._children = children
        self._task = task
        self._on_start = on_start
        self._source = source
        self._lock = threading.Lock()
        self._child: Child | None = None  # while it works on this call
        self._killed = False

    def run(self) -> Ending | NotStarted:
        """Run the call in a child. If the child dies, only this call fails."""
        with self._children.turns if self.alone else nullcontext():
            return Ending() if self._killed else self._run()

    def _run(self) -> Ending | NotStarted:
        try:
            child = self._children.take()
        except Exception as error:
            return NotStarted(f"no child process could be started: {said(error)}")
        with self._lock:
            self._child = child
            if self._killed:
                child.kill()
        answer = last = None
        try:
            answer = last = child.accept(self._task)
            if answer == READY:
                self._on_start()
                last = child.ending(self._source)
        except BaseException as error:
            return failure(error)
        finally:
            with self._lock:
                self._child = None
                self.ending = None if last is None else last.ending
                reusable = self.ending is not None and not self._killed
            if reusable and last is not None and last.leaves:
                child.retire()
            elif reusable:
                self._children.give_back(child, keep=not self.alone)
            else:
                child.end()
        if answer != READY:
            how = _exit(child.process.exitcode)
            why = f"a child process died before it could run anything: {how}"
            return NotStarted((answer and answer.not_started) or why)
        if last is None or last.ending is None:
            return Ending(error=f"the child process died: {_exit(child.process.exitcode)}")
        return last.ending

    def kill(self) -> None:
        """Kill the child now, or as soon as it gets this call."""
        with self._lock:
            self._killed = True
            if self._child is not None:
                self._child.kill()


@dataclass(slots=True)
class Child:
    """One child process, which leads its own process group, and the pipe to it."""

    process: BaseProcess
    pipe: Connection
    waits_for_calls: bool = False  # as far as is known

    @classmethod
    def start(cls, context: multiprocessing.context.SpawnContext) -> Child:
        """Start a child that waits for calls."""
        for name in SECRETS:
            os.environ.pop(name, None)
        ours, theirs = context.Pipe()
        process = context.Process(
            target=serve_calls, args=(theirs, logs.configured), name=CHILD, daemon=True
        )
        resource_tracker.ensure_running()  # it would unblock the signals
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until the child is ready
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        return cls(process, ours)

    def accept(self, task: ChildTask) -> ChildAnswer | None:
        """Hand over a call; return READY once its handler is found, None if the child dies."""
        deadline = time.monotonic() + START_SECONDS
        if not self.waits_for_calls and self.receive(deadline) != READY:
            return None
        self.waits_for_calls = True
        try:
            self.pipe.send_bytes(encode(task))
        except OSError:
            return None
        return self.receive(deadline)

    def ending(self, source: StepSource) -> ChildAnswer | None:
        """Return the message with the ending; None if the child dies or sends something else."""
        while (answer := self.receive()) is not None and (answer.notes or answer.call):
            if answer.notes is not None:
                source.note(answer.notes)
            if answer.call is not None:
                self.pipe.send_bytes(encode(reply_to(source.ask(answer.call))))
            if answer.ending is not None:
                break
        return answer

    def receive(self, deadline: float = math.inf) -> ChildAnswer | None:
        """Return the next message; None if the child dies, is late or sends something else."""
        try:
            # The pipe of a dead child stays open while a process that it forked holds it.
            while not self.pipe.poll(CHILD_CHECK_SECONDS):
                is_late = time.monotonic() > deadline
                if (is_late or not self.process.is_alive()) and not self.pipe.poll():
                    return None
            return read_answer(self.pipe.recv_bytes(MAX_ANSWER_BYTES))
        except (EOFError, OSError, msgspec.DecodeError):
            return None

    def kill(self) -> None:
        """Kill the child and its process group now."""
        assert self.process.pid is not None
        with suppress(OSError):  # the group does not exist yet, or no longer
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    def retire(self) -> None:
        """Ask the child to exit; kill it if it does not."""
        self.pipe.close()
        wait([self.process.sentinel], EXIT_SECONDS)
        self.end()

    def end(self) -> None:
        """Kill the child and wait for its end. Call it soon: process ids are reused."""
        self.kill()
        self.process.join(5)
        self.pipe.close()


def _exit(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
