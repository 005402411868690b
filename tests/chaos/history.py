"""Records of what was asked, what was answered and what ran, for `tests.chaos.checker`.

Every process that takes part keeps a file of JSON lines in one folder. The line `invoke` is written
before the call; after it exactly one of `ok`, `refused` (it certainly did not happen) and `unknown`
(a time-out, a cut, a store that failed: it may have happened). A process that was killed wrote
nothing more, which also means unknown. Leases are written out: this is a test's log, not a log.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tenure import Job, Tenure
from tenure.app import jobs as app_jobs
from tenure.errors import (
    IllegalTransition,
    InvalidInput,
    JobNotFound,
    KeyConflict,
    LeaseLost,
    QueueFull,
    SchemaMismatch,
    Unauthorized,
)
from tenure.handlers.context import JobContext
from tenure.handlers.registry import Handler, Handlers
from tenure.rules.jobs import Enqueued, NewJob, TypeOptions
from tenure.rules.reports import Answer, ClaimRequest, Exchange, Report
from tenure.store.transitions import Steps

DID_NOT_HAPPEN = (
    IllegalTransition,
    InvalidInput,
    JobNotFound,
    KeyConflict,
    LeaseLost,
    QueueFull,
    SchemaMismatch,
    Unauthorized,
)
"""Errors that promise that nothing was changed."""
_runs = itertools.count(1)


class History:
    """What one process or thread records, in a file of its own. Safe to use from any thread."""

    def __init__(self, folder: Path, who: str) -> None:
        """`who` names it in findings; it may come back in another process."""
        folder.mkdir(parents=True, exist_ok=True)
        self.who = f"{who}-{os.getpid()}"
        self._numbers = itertools.count(1)
        path = folder / f"{self.who}-{secrets.token_hex(4)}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.Lock()

    def invoke(self, op: str, **asked: Any) -> int:
        """About to ask for this; returns the number that the answer belongs to."""
        return self.invoke_all(op, [asked])[0]

    def invoke_all(self, op: str, asked: Sequence[Mapping[str, Any]]) -> list[int]:
        """About to ask for these at once; a number for each."""
        numbers = [next(self._numbers) for _ in asked]
        self._write(
            {"kind": "invoke", "n": number, "op": op, **one}
            for number, one in zip(numbers, asked, strict=True)
        )
        return numbers

    def ok(self, number: int, **answer: Any) -> None:
        """It happened."""
        self._write([{"kind": "ok", "n": number, **answer}])

    def refused(self, number: int, why: object, **answer: Any) -> None:
        """It did not happen and never will."""
        self._write([{"kind": "refused", "n": number, "why": _words(why), **answer}])

    def unknown(self, number: int, why: object) -> None:
        """It may have happened."""
        self._write([{"kind": "unknown", "n": number, "why": _words(why)}])

    def failed(self, numbers: Sequence[int], error: BaseException) -> None:
        """The call raised: `refused` or `unknown`, by the error."""
        answer = self.refused if isinstance(error, DID_NOT_HAPPEN) else self.unknown
        for number in numbers:
            answer(number, error)

    def answers(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Several answers at once."""
        self._write(lines)

    def note(self, kind: str, **said: Any) -> None:
        """Anything that is no call: the start and the end of a handler or of a fault."""
        self._write([{"kind": kind, "n": next(self._numbers), **said}])

    @contextlib.contextmanager
    def fault(self, what: str, **said: Any) -> Iterator[None]:
        """A fault that begins now and ends with the block."""
        self.note("fault", what=what, **said)
        try:
            yield
        finally:
            self.note("fault_end", what=what, **said)

    def _write(self, lines: Any) -> None:
        stamp = {"who": self.who, "mono": time.monotonic(), "wall": time.time()}
        text = "".join(json.dumps({**stamp, **line}, default=str) + "\n" for line in lines)
        with self._lock:
            os.write(self._file, text.encode())


def _words(why: object) -> str:
    return f"{type(why).__name__}: {why}" if isinstance(why, BaseException) else str(why)


class Recorded:
    """A `Tenure` or a `tenure.client.Client` whose calls are on record; a worker's source, too."""

    def __init__(self, source: Any, history: History) -> None:
        self.source = source
        self.work = source.core if hasattr(source, "core") else source
        self.record = history

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source if hasattr(self.source, name) else self.work, name)

    # --- adding jobs

    def enqueue(self, type: str, payload: Mapping[str, Any] | None = None, **options: Any) -> Job:
        new_jobs = [NewJob(type, {} if payload is None else payload, options)]  # type: ignore[arg-type]
        with self._enqueueing(new_jobs) as jobs:
            jobs.append(self.source.enqueue(type, payload, **options))
        return jobs[0]

    def enqueue_many(self, new_jobs: Sequence[NewJob]) -> list[Job]:
        with self._enqueueing(new_jobs) as jobs:
            jobs.extend(self.source.enqueue_many(new_jobs))
        return jobs

    async def enqueue_async(
        self, type: str, payload: Mapping[str, Any] | None = None, **options: Any
    ) -> Job:
        new_jobs = [NewJob(type, {} if payload is None else payload, options)]  # type: ignore[arg-type]
        return (await self.enqueue_many_async(new_jobs))[0]

    async def enqueue_many_async(self, new_jobs: Sequence[NewJob]) -> list[Job]:
        with self._enqueueing(new_jobs) as jobs:
            jobs.extend(await self.source.enqueue_many_async(new_jobs))
        return jobs

    def add(self, new_jobs: Sequence[NewJob], *, batch: bool = False) -> Future[list[Enqueued]]:
        numbers = self._invoke_enqueue(new_jobs)
        try:
            future: Future[list[Enqueued]] = app_jobs.add(self.source.core, new_jobs, batch=batch)
        except BaseException as error:
            self.record.failed(numbers, error)
            raise
        future.add_done_callback(
            self._then(numbers, lambda added: self._accepted(numbers, [one.job for one in added]))
        )
        return future

    @contextlib.contextmanager
    def _enqueueing(self, new_jobs: Sequence[NewJob]) -> Iterator[list[Job]]:
        numbers = self._invoke_enqueue(new_jobs)
        jobs: list[Job] = []
        try:
            yield jobs
        except BaseException as error:
            self.record.failed(numbers, error)
            raise
        self._accepted(numbers, jobs)

    def _invoke_enqueue(self, new_jobs: Sequence[NewJob]) -> list[int]:
        batch = secrets.token_hex(8)
        return self.record.invoke_all(
            "enqueue",
            [
                {"type": d.type, "payload": d.payload, "options": dict(d.options), "batch": batch}
                for d in new_jobs
            ],
        )

    def _accepted(self, numbers: Sequence[int], jobs: Sequence[Job]) -> None:
        self.record.answers(
            [
                {"kind": "ok", "n": number, "job": job.id, "max_retries": job.max_retries}
                for number, job in zip(numbers, jobs, strict=True)
            ]
        )

    # --- what workers call

    def exchange(self, reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        record = self.record
        reported = record.invoke_all(
            "report",
            [{"job": r.job_id, "lease": r.lease_id, "outcome": str(r.outcome)} for r in reports],
        )
        asked = [] if claim is None else [{"worker": claim.worker, "limit": claim.limit}]
        claimed = record.invoke_all("claim", asked)

        def answered(exchange: Exchange) -> None:
            lines: list[dict[str, Any]] = []
            for number, verdict in zip(reported, exchange.verdicts, strict=True):
                good = verdict.answer in (Answer.RECORDED, Answer.ALREADY_RECORDED)
                said = {"answer": str(verdict.answer), "recorded": verdict.recorded}
                lines.append({"kind": "ok" if good else "refused", "n": number, **said})
            leases = [
                {"job": one.id, "lease": one.lease_id, "token": one.token, "attempt": one.attempts}
                for one in exchange.leases
            ]
            lines += [{"kind": "ok", "n": number, "leases": leases} for number in claimed]
            record.answers(lines)

        try:
            future: Future[Exchange] = self.work.exchange(reports, claim)
        except BaseException as error:
            for number in (*reported, *claimed):
                record.unknown(number, error)
            raise
        # A turn that fails may have reported, or claimed, before it did.
        future.add_done_callback(self._then([*reported, *claimed], answered, whole=False))
        return future

    def claim(self, request: ClaimRequest) -> Exchange:
        return self.exchange((), request).result()

    def report(self, reports: Sequence[Report]) -> Exchange:
        return self.exchange(reports, None).result()

    def _then(
        self, numbers: Sequence[int], answered: Callable[[Any], None], *, whole: bool = True
    ) -> Callable[[Future[Any]], None]:
        def done(future: Future[Any]) -> None:
            error = None if future.cancelled() else future.exception()
            if future.cancelled() or (error is not None and not whole):
                for number in numbers:
                    self.record.unknown(number, error or "cancelled")
            elif error is not None:
                self.record.failed(numbers, error)
            else:
                answered(future.result())

        return done

    def heartbeat(
        self, leases: Sequence[tuple[str, str]], lease_seconds: float
    ) -> Mapping[str, str]:
        ended: Mapping[str, str]
        with self._calling("heartbeat", leases=leases) as answer:
            ended = self.work.heartbeat(leases, lease_seconds)
            answer["held"] = sorted(lease_id for _, lease_id in leases if lease_id not in ended)
        return ended

    # --- what the sweeper and operators call

    @property
    def core(self) -> RecordedCore:
        return RecordedCore(self)

    def cancel(self, job_id: str, **options: Any) -> Job:
        job: Job
        with self._calling("cancel", job=job_id):
            job = self.source.cancel(job_id, **options)
        return job

    def retry(self, job_id: str, *, more_retries: int = 1, **options: Any) -> Job:
        job: Job
        with self._calling("retry", job=job_id, more=more_retries):
            job = self.source.retry(job_id, more_retries=more_retries, **options)
        return job

    @contextlib.contextmanager
    def _calling(self, op: str, **asked: Any) -> Iterator[dict[str, Any]]:
        number = self.record.invoke(op, **asked)
        answer: dict[str, Any] = {}
        try:
            yield answer
        except BaseException as error:
            self.record.failed([number], error)
            raise
        self.record.ok(number, **answer)


class RecordedCore:
    """The `core` of a `Tenure`; sweeps and prunes are recorded."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self._real = recorded.source.core

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def sweep(self) -> list[Steps]:
        ended: list[Steps]
        with self._recorded._calling("sweep") as answer:
            ended = self._real.sweep()
            answer["jobs"] = [steps[0].id for steps in ended]
        return ended

    def prune(self, keep: Mapping[str, Any]) -> int:
        count: int
        with self._recorded._calling("prune", keep=keep) as answer:
            count = answer["count"] = self._real.prune(keep)
        return count


@dataclass(frozen=True, slots=True, kw_only=True)
class _RecordedHandler(Handler):
    """A handler that gets its context, whether or not its function wants one."""

    original: Handler

    def arguments(self, text: str) -> dict[str, Any]:
        return self.original.arguments(text)


class RecordedHandlers(Handlers):
    """Handlers whose starts and ends are on record, but for those that run in child processes."""

    def __init__(self, handlers: Handlers, history: History) -> None:
        super().__init__()
        self._inner = handlers
        self._history = history

    def add(self, handler: Handler) -> None:
        self._inner.add(handler)

    def add_for_any(self, make: Callable[[str], Handler]) -> None:
        self._inner.add_for_any(make)

    def defaults(self, type: str) -> TypeOptions:
        return self._inner.defaults(type)

    def types(self) -> tuple[str, ...] | None:
        return self._inner.types()

    def find(self, type: str) -> Handler | None:
        handler = self._inner.find(type)
        if handler is None or handler.in_process:
            return handler
        values = {field.name: getattr(handler, field.name) for field in fields(handler)}
        values |= {"function": self._recorded(handler), "wants_context": True}
        return _RecordedHandler(**values, original=handler)

    def _recorded(self, handler: Handler) -> Callable[..., Any]:
        function = handler.function
        if handler.is_async:

            @functools.wraps(function)
            async def run_async(context: JobContext, **arguments: Any) -> Any:
                given = (context,) if handler.wants_context else ()
                with self._running(context):
                    return await function(*given, **arguments)

            return run_async

        @functools.wraps(function)
        def run(context: JobContext, **arguments: Any) -> Any:
            given = (context,) if handler.wants_context else ()
            with self._running(context):
                return function(*given, **arguments)

        return run

    @contextlib.contextmanager
    def _running(self, context: JobContext) -> Iterator[None]:
        of = {"job": context.id, "token": context.token, "attempt": context.attempt}
        of |= {"run": next(_runs)}
        self._history.note("exec_start", **of)
        ended = "returned"
        try:
            yield
        except BaseException as error:
            ended = type(error).__name__
            raise
        finally:
            self._history.note("exec_end", **of, ended=ended)


def record_handlers(source: Tenure | Handlers, history: History) -> RecordedHandlers:
    """Put on record whenever a handler starts and ends; for an application, also those to come."""
    if isinstance(source, Tenure):
        source.core.handlers = RecordedHandlers(source.core.handlers, history)
        return source.core.handlers
    return RecordedHandlers(source, history)
