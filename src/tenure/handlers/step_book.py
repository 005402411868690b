"""The steps of one attempt, against what earlier attempts of its job have kept."""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from inspect import isawaitable
from itertools import count
from types import CoroutineType
from typing import Any, NoReturn, Self, get_type_hints

from tenure.errors import DuplicateStep, InvalidInput, PermanentFailure, StoreUnavailable
from tenure.handlers.results import read_result, storable_result
from tenure.rules.reports import Parked
from tenure.rules.steps import (
    JOB_LOCKED,
    MAX_STEPS,
    MAX_STEPS_BYTES,
    KeepState,
    KeepToken,
    Load,
    Loaded,
    Notes,
    Record,
    Step,
    StepCall,
    StepSource,
    Waiting,
)
from tenure.values.names import check_name

RESERVED_STEPS = ("sleep:", "wait:", "timeout:")
"""How the names of steps begin that Tenure records."""
ASK_SECONDS = 30.0
"""How long a call is asked again while the database does not answer, or the job is locked."""
HELD_SECONDS = 5.0
"""How long while a transaction of this program holds the SQLite file. The caller's own does not end
meanwhile; another one may: sqlite3 itself waits as long by default."""
ASK_AGAIN_SECONDS = 0.1
WRITES = (Record, KeepState, KeepToken)
NOW = datetime.fromtimestamp(0, UTC)
"""The time of a step of this attempt, which nothing reads."""
SLEEP_HERE_SECONDS = 5.0
"""A shorter sleep keeps its slot."""
MAX_SLEEP_NAME = 100
"""Characters of the name of a sleep, to which that of its step adds some."""
RETAKE = "; catch InvalidInput and wait again, which takes the next signal"
REFIT = (
    "; let the annotation accept what is on record, or give the step another name, "
    "by which it runs again"
)


class StepBook:
    """What one attempt has done, and what is on record. Threads of a handler may share it.

    Without a `source`, where a handler is called as a function, it only remembers.
    """

    def __init__(
        self,
        token: int,
        source: StepSource | None,
        on_park: Callable[[Parked], object] | None,
        check_free: Callable[[], object] | None = None,
    ) -> None:
        self._token = token
        self._source = source
        self._on_park = on_park
        self._check_free = check_free
        self._parked: Parked | None = None
        self._loaded: Loaded | None = None
        self._loaded_at = 0.0  # monotonic
        # The first attempt has nothing to read.
        self._steps: dict[str, Step] | None = None if source is not None and token > 1 else {}
        self._started: set[str] = set()
        self._state: str | None = None
        self._states = 0
        self._lock = threading.Lock()

    @property
    def is_attempt(self) -> bool:
        """Whether a worker runs the handler."""
        return self._source is not None

    def check_free(self) -> None:
        """Raise InvalidInput if what is written now would wait for a transaction of this thread."""
        if self._check_free is not None:
            self._check_free()

    # --- what is on record

    def ask(self, call: StepCall) -> Waiting[Any]:
        """Return the answer to a call; an outage that passes only takes time."""
        if self._source is None:
            return None
        if isinstance(call, WRITES):
            self.check_free()
        began = time.monotonic()
        while True:
            future = self._source.ask(call)
            yield future
            error = future.exception()
            if error is None:
                return future.result()
            passes = isinstance(error, StoreUnavailable) or (
                isinstance(error, InvalidInput) and error.code == JOB_LOCKED
            )
            most = HELD_SECONDS if getattr(error, "_held_here", False) else ASK_SECONDS
            if not passes or time.monotonic() > began + most:
                raise error
            yield ASK_AGAIN_SECONDS

    def steps(self) -> Waiting[dict[str, Step]]:
        """Return the steps on record by name, read at the first use."""
        if self._steps is None:
            loaded: Loaded = yield from self.ask(Load())
            with self._lock:
                if self._steps is None:
                    self._loaded, self._loaded_at = loaded, time.monotonic()
                    self._steps = {step.name: step for step in loaded.steps}
        return self._steps

    def left(self, step: Step) -> float:
        """Return the seconds until what a step keeps the end of, by the clock of the store."""
        if self._loaded is None or step.token == self._token:
            return float(step.result)
        passed = time.monotonic() - self._loaded_at
        return (step.until - self._loaded.now).total_seconds() - passed

    # --- steps

    def begin(self, name: str, *, reserved: bool = False) -> Waiting[Step | None]:
        """Begin a step; return it if it is on record, None if it is to be done now."""
        self.check_parked()
        check_name(name, "step", "name")
        if name.startswith(RESERVED_STEPS) and not reserved:
            raise InvalidInput(f"names with {', '.join(RESERVED_STEPS)} are Tenure's", path="name")
        with self._lock:
            if name in self._started:
                raise DuplicateStep(name)
            self._started.add(name)
        with self.doing(name):
            steps = yield from self.steps()
            if name not in steps and len(steps) >= MAX_STEPS:
                raise InvalidInput(
                    f"this job has {MAX_STEPS} steps on record, the limit: keep a state instead "
                    "(context.checkpoint), or add more jobs"
                )
        return steps.get(name)

    @contextmanager
    def doing(self, name: str) -> Iterator[None]:
        """Let a step that fails here be started again by the same attempt."""
        try:
            yield
        except BaseException:
            self._started.discard(name)
            raise

    @staticmethod
    def to_await(name: str, given: Any) -> Awaitable[Any]:
        """Return what a step awaits; raises PermanentFailure if its function has run instead."""
        if not isawaitable(given):
            said = (
                "is a plain function, which has run and is not on record: write step_async(name, "
            )
            raise PermanentFailure(f"step {name!r} {said}asyncio.to_thread, function, …)")
        return given

    def new(self, name: str, value: object) -> Record:
        """Return what is to be recorded of a step; raises PermanentFailure if it cannot be."""
        text = None if value is None else kept(value, f"step {name!r}")
        steps = self._steps or {}
        size = sum(len(one.result_json or "") for one in list(steps.values())) + len(text or "")
        if size > MAX_STEPS_BYTES:
            raise PermanentFailure(
                f"step {name!r} was done and its result cannot be kept: the results of all steps "
                f"of a job have {MAX_STEPS_BYTES} bytes at most"
            )
        return Record(name, len(steps) + 1, text)

    def record(self, new: Record) -> Waiting[Step]:
        """Record a step, and return the one on record, which may be an earlier one."""
        recorded = yield from self.ask(new)
        return self.noted(new) if recorded is None else self._noted(recorded.step)

    def noted(self, new: Record) -> Step:
        """Note that a step is on record; return it."""
        return self._noted(Step(new.name, new.number, self._token, NOW, new.result))

    def _noted(self, step: Step) -> Step:
        with self._lock:
            assert self._steps is not None  # it was started
            self._steps[step.name] = step
        return step

    @staticmethod
    def value(step: Step, returns: Any) -> Any:
        """Return the result of a step as an annotation says; raises InvalidInput if it cannot."""
        return read_result(step.result_json, returns, f"step {step.name!r}", REFIT)

    @staticmethod
    def said(payload: str, kind: Any, name: str) -> Any:
        """Return what a signal says as an annotation says; raises InvalidInput if it cannot."""
        return read_result(payload, kind, f"signal {name!r}", RETAKE, path="$.payload")

    @staticmethod
    def returned_by(function: Any, *args: Any) -> Any:
        """Return the annotation of what a call returns; Any if none can be read."""
        import asyncio

        while isinstance(function, functools.partial) or (function is asyncio.to_thread and args):
            if isinstance(function, functools.partial):
                function = function.func
            else:
                function, args = args[0], args[1:]
        if isinstance(function, type):
            return function
        try:
            returns = get_type_hints(function).get("return", Any)
        except Exception:  # it evaluates annotations
            return Any
        if returns is not Self:
            return returns
        owner = getattr(function, "__self__", None)
        return owner if isinstance(owner, type) else type(owner)

    # --- sleep and state

    def sleep(self, seconds: float, name: str | None) -> Waiting[None]:
        """Sleep, without a slot if it takes a while; without a name, as the next one by number."""
        own = self.next_place("sleep:") if name is None else check_sleep_name(name)
        name = f"sleep:{own}"
        step = yield from self.begin(name, reserved=True)
        if step is None:
            with self.doing(name):
                step = yield from self.record(self.new(name, seconds))
        left = self.left(step) if self._source is not None else 0.0
        if left >= SLEEP_HERE_SECONDS:
            self.park(Parked(f"it sleeps for {left:.0f} s", delay=left))
        if left > 0:
            yield left

    def next_place(self, prefix: str) -> int:
        """Return the first number that no step has which this attempt has started."""
        with self._lock:
            return next(n for n in count(1) if f"{prefix}{n}" not in self._started)

    def park(self, parked: Parked) -> NoReturn:
        """End the attempt; from now on nothing else can be done in it."""
        self._parked = parked
        if self._on_park is not None:
            self._on_park(parked)
        raise parked

    def check_parked(self) -> None:
        """Raise what parked this attempt, if its handler caught that and continued."""
        if self._parked is not None:
            raise self._parked

    def state(self, default: Any) -> Waiting[Any]:
        """Return the last state, of this attempt or an earlier one."""
        yield from self.steps()
        text = self._state
        if text is None and self._loaded is not None:
            text = self._loaded.state
        return default if text is None else json.loads(text)

    def keep_state(self, value: object, *, flush: bool) -> Waiting[None]:
        """Keep a state: on disk when this returns if `flush`, else soon."""
        self.check_parked()
        text = kept(value, "the checkpoint")
        with self._lock:
            self._states += 1
            self._state, state = text, KeepState(self._states, text)
        if flush:
            yield from self.ask(state)
        elif self._source is not None:
            self._source.note(Notes(state=state))


def check_sleep_name(name: object) -> str:
    """Return the name of a sleep; raises InvalidInput if it cannot be one."""
    checked = check_name(name, "sleep", "name")
    if len(checked) > MAX_SLEEP_NAME:
        raise InvalidInput(f"give at most {MAX_SLEEP_NAME} characters", path="name")
    if checked.isdigit():
        raise InvalidInput(
            f"sleeps without a name have numbers: give a name that is none, such as n:{checked}",
            path="name",
        )
    return checked


def kept(value: object, what: str) -> str:
    """Return a value as the JSON text that is stored; raises PermanentFailure if it has none.

    Whatever it is that was done, to do it once more would not help.
    """
    if isinstance(value, CoroutineType):
        value.close()
        raise PermanentFailure(f"{what} is a coroutine, which is not run: await step_async")
    try:
        return storable_result(value)
    except Exception as flaw:
        raise PermanentFailure(f"{what} cannot be stored: {flaw}") from flaw
