"""Tenure over HTTP: the verbs of the application, for producers and workers on other machines.

    client = Client("http://127.0.0.1:8080")
    job = client.enqueue("send_email", {"to": "a@example.com"}, max_retries=5)

A client raises the exceptions that the application raises. A failure of the network raises
StoreUnavailable: the outcome may be unknown. A remote worker uses a client as its application.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime
from functools import partial
from math import inf
from typing import Any, Self, TypeVar, Unpack
from urllib.parse import parse_qs, urlsplit

from msgspec import UNSET, structs

from tenure.errors import Forbidden, InvalidInput, JobNotFound, StoreUnavailable, TenureError
from tenure.jobs import durations, ids
from tenure.jobs.enqueue import Duration, NewJob, Options, TypeOptions
from tenure.jobs.explain import Explanation
from tenure.jobs.ledger import Transition
from tenure.jobs.progress import JobProgress
from tenure.jobs.queries import Fields
from tenure.jobs.stats import Count, TypeState
from tenure.jobs.steps import StepCall
from tenure.jobs.work import ClaimRequest, Exchange, HeldLeases, Lease, Outcome, Report, Verdict
from tenure.lifecycle import Job
from tenure.wire import requests, responses
from tenure.wire.reports import (
    MAX_WAIT_SECONDS,
    LeaseRequest,
    ProgressEntry,
    join_lease,
    report_entry,
    split_lease,
)
from tenure.wire.transport import (
    DEFAULT_TIMEOUT_SECONDS,
    Transport,
    blocking,
    finished,
)

T = TypeVar("T")

log = logging.getLogger(__name__)

ENDS = "/leases/ended"
SILENT_SECONDS = 40.0  # after which that stream is broken: a sign of life comes every 15 s
RECONNECT_SECONDS = 1.0


class _Client:
    """What both clients are made of."""

    _blocks: bool

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        *,
        tracing: bool = False,
    ) -> None:
        """Prepare a client. It connects with the first request.

        - `url`: address of the server, `http://` or `https://`, with the path it is mounted at.
        - `token`: token of the HTTP API. Default: none, for a server without tokens. A warning is
          logged if it is sent to another machine without TLS.
        - `timeout`: seconds for each step of a request: to connect, to send, and until the answer
          arrives. A claim may take as much longer as it waits for work. Default: 30.
        - `tracing`: make OpenTelemetry spans for adding jobs, and in a worker for each attempt.
          Needs `pip install 'tenure[otel]'`. Default: false.

        Raises InvalidInput if `url` is not such an address, or if a library is not installed.
        """
        self._to = Transport(url, token, timeout, tracing=tracing, blocks=self._blocks)
        self.tracing = self._to.tracing


class AsyncClient(_Client):
    """A client of one Tenure server for one event loop. Close it, or use it with `async with`."""

    _blocks = False

    async def close(self) -> None:
        """Close the connections."""
        await self._to.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def enqueue(
        self, type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[Options]
    ) -> Job:
        """Add a job. When this returns, the job is on the server's disk.

        - `type`: name of the job type. Its handler need not be known here.
        - `payload`: keyword arguments of the handler, as plain JSON of at most 1 MiB. Default: {}.
        - `options`: those of `Tenure.enqueue` but `actor`: the history names the server's caller.

        Returns the job, or the earlier job with the same `idempotency_key`.

        Raises InvalidInput, PayloadTooLarge, KeyConflict, QueueFull, Unauthorized, Forbidden, or
        StoreUnavailable. After StoreUnavailable the outcome may be unknown: enqueue again, with an
        `idempotency_key` if one job must not become two.
        """
        new_job = NewJob(type, {} if payload is None else payload, options)
        body = requests.new_job(new_job, "$")
        job: Job = await _add(self._to, [new_job], partial(self._to.job, "POST", "/jobs", body))
        return job

    async def enqueue_many(self, new_jobs: Sequence[NewJob]) -> list[Job]:
        """Add up to 1,000 jobs in one transaction, all or none; returns them in the same order.

        Raises what `enqueue` raises. The path of an InvalidInput names the job.
        """
        body = [requests.new_job(new, f"$[{number}]") for number, new in enumerate(new_jobs)]
        send = partial(self._to.ask, "POST", "/jobs/batch", list[responses.JobBody], body)
        return [responses.job_of(one) for one in await _add(self._to, new_jobs, send)]

    async def get(self, job_id: str) -> Job:
        """Return a job; raises JobNotFound."""
        return await self._to.job("GET", _path_of(job_id))

    async def wait(self, job_id: str, timeout: Duration | None = None) -> Job:
        """Return a job once it is settled: completed, failed for good, or cancelled.

        - `timeout`: a duration to wait at most. Default: None, as long as it takes.

        Makes a request per minute. Raises JobNotFound, TimeoutError if the job is not settled in
        time, and goes on, or StoreUnavailable.
        """
        limit = inf if timeout is None else durations.seconds(timeout, path="$.timeout")
        until = time.monotonic() + limit
        while True:
            left = min(max(until - time.monotonic(), 0.0), requests.MAX_JOB_WAIT_SECONDS)
            query = {"wait": f"{left:.3f}"}
            job = await self._to.job("GET", _path_of(job_id), query=query, wait=left)
            if job.finished_at is not None:
                return job
            if time.monotonic() >= until:
                raise TimeoutError(f"job {job_id} is not settled after {limit:g} s; it goes on")

    async def find(
        self, *, limit: int = 50, before: str | None = None, **filter: Unpack[Fields]
    ) -> list[Job]:
        """Return the jobs that match a filter, newest first.

        - `limit`: most jobs to return, 1 to 500. Default: 50. Several requests are made if needed.
        - `before`: id of the last job of the page before. Default: begin with the newest.
        - `filter`: that of `Tenure.find`, except `hidden`.

        Raises InvalidInput.
        """
        if (least := filter.get("running_longer_than")) is not None:
            filter["running_longer_than"] = durations.seconds(least)
        query = {
            name: value.isoformat() if isinstance(value, datetime) else str(value)
            for name, value in filter.items()
            if value is not None
        }
        cursor = before and before.replace("-", "")
        jobs: list[Job] = []
        while True:
            page = {**query, "limit": str(limit - len(jobs))}
            if cursor:
                page["cursor"] = cursor
            response = await self._to.request("GET", "/jobs", query=page)
            jobs += map(responses.job_of, self._to.read(response, "/jobs", list[responses.JobBody]))
            cursor = _cursor_in(response.links)
            if cursor is None or len(jobs) == limit:
                return jobs

    async def history(self, job_id: str) -> list[Transition]:
        """Return the transitions of a job, oldest first; raises JobNotFound."""
        entries = await self._to.ask(
            "GET", f"{_path_of(job_id)}/history", list[responses.TransitionBody]
        )
        return [Transition(**structs.asdict(entry)) for entry in entries]

    async def explain(self, job_id: str) -> Explanation:
        """Return why a job is not running; raises JobNotFound."""
        return await self._to.ask("GET", f"{_path_of(job_id)}/explain", Explanation)

    async def cancel(self, job_id: str, *, reason: str | None = None) -> Job:
        """Cancel a pending or processing job, for a `reason` of at most 500 characters.

        Raises JobNotFound, IllegalTransition or InvalidInput.
        """
        return await self._to.job("POST", f"{_path_of(job_id)}/cancel", {"reason": reason})

    async def retry(self, job_id: str, *, more_retries: int = 1, reason: str | None = None) -> Job:
        """Make a finally failed job pending, with `more_retries` (1 to 1,000) more attempts.

        Raises JobNotFound, IllegalTransition or InvalidInput.
        """
        body = {"more_retries": more_retries, "reason": reason}
        return await self._to.job("POST", f"{_path_of(job_id)}/retry", body)

    async def stats(self) -> list[Count]:
        """Return the number of jobs by status, queue and type."""
        return list((await self._to.ask("GET", "/stats", responses.StatsBody)).counts)


class Client(_Client):
    """A client of one Tenure server. Thread-safe. Close it, or use it with `with`."""

    _blocks = True

    waits = True
    """The server may hold a claim until there is work."""
    exchanges = 1
    """Exchanges that a worker has under way at once."""
    database = None
    """Only the server knows it."""

    def close(self) -> None:
        """Close the connections. A claim that still waits is cancelled."""
        self._to.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    enqueue = blocking(AsyncClient.enqueue)
    enqueue_many = blocking(AsyncClient.enqueue_many)
    get = blocking(AsyncClient.get)
    wait = blocking(AsyncClient.wait)
    find = blocking(AsyncClient.find)
    history = blocking(AsyncClient.history)
    explain = blocking(AsyncClient.explain)
    cancel = blocking(AsyncClient.cancel)
    retry = blocking(AsyncClient.retry)
    stats = blocking(AsyncClient.stats)

    def exchange(self, reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        """Report, then claim. Cancel the future to give up a claim that waits.

        Leases that arrive after that are released.
        """
        if self._to.http.is_closed:
            raise StoreUnavailable("the client is closed")
        future: Future[Exchange] = Future()
        _start(self._take_exchange, future, reports, claim)
        return future

    def _take_exchange(
        self, future: Future[Exchange], reports: Sequence[Report], claim: ClaimRequest | None
    ) -> None:
        if future.cancelled():
            return
        try:
            verdicts = self._report(reports) if reports else []
            leases = self._claim(claim) if claim is not None else []
        except BaseException as error:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
            return
        if future.set_running_or_notify_cancel():
            future.set_result(Exchange(verdicts, leases))
        elif leases:
            self._hand_back(leases)

    def _hand_back(self, leases: Sequence[Lease]) -> None:
        try:
            self._report([Report(one.id, one.lease_id, Outcome.RELEASED) for one in leases])
        except TenureError as error:
            log.warning("%d leases could not be handed back and run out: %s", len(leases), error)

    def _report(self, reports: Sequence[Report]) -> list[Verdict]:
        body = [report_entry(report) for report in reports]
        verdicts = self._ask("POST", "/reports", list[responses.VerdictBody], body)
        return [Verdict(one.answer, one.recorded, one.retry_in, one.error) for one in verdicts]

    def _claim(self, claim: ClaimRequest) -> list[Lease]:
        wait = min(claim.wait_seconds, MAX_WAIT_SECONDS)
        fields = {**structs.asdict(claim), "label": claim.label or UNSET, "wait_seconds": wait}
        del fields["next_due"]  # a claim that is held until there is work needs no hint
        body = LeaseRequest(**fields)
        leases = self._ask("POST", "/leases", list[responses.LeaseBody], body, wait=wait)
        return [responses.lease_of(lease) for lease in leases]

    def declare(self, options: Mapping[str, TypeOptions]) -> None:
        """Make the options of types known to the server, by name; called by workers.

        Leaves out types with a queue that the token is not for.
        """
        for name, each in options.items():
            with suppress(Forbidden):
                self._ask("PUT", f"/types/{name}", TypeState, each)

    def heartbeat(self, leases: HeldLeases, lease_seconds: float) -> Mapping[str, str]:
        """Extend (job id, lease id) leases; returns by lease id which event ended the others."""
        names = [join_lease(*lease) for lease in leases]
        # Leaves time for another try before the leases run out.
        timeout = min(self._to.timeout, max(lease_seconds / 2, 1.0))
        query, kind = {"lease_seconds": str(lease_seconds)}, list[responses.HeldBody]
        answers = self._ask("POST", "/heartbeats", kind, names, query=query, timeout=timeout)
        return {split_lease(a.lease_id)[1]: a.ended_by for a in answers if not a.held}

    def record_progress(self, entries: Sequence[tuple[str, str, JobProgress]]) -> int:
        """Store how far (job id, lease id) attempts have come; returns how many are still held."""
        body = [
            ProgressEntry(p.done, p.total, p.message, lease_id=join_lease(*lease))
            for *lease, p in entries
        ]
        return self._ask("POST", "/progress", responses.RecordedBody, body).recorded

    def ask(self, job_id: str, lease_id: str, call: StepCall) -> Future[Any]:
        """Refuse what an attempt asks for."""
        raise InvalidInput("a worker that gets its jobs over HTTP cannot keep steps yet")

    def on_work(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Do nothing: the server answers a claim that waits when there is work."""
        return lambda: None

    def on_end(self, worker: str, notify: Callable[[], None]) -> Callable[[], None]:
        """Call `notify`, on any thread, when leases of a worker may have ended; as `WorkSource`."""
        stopped, query = threading.Event(), {"worker": worker}

        def listen() -> None:
            while not (stopped.is_set() or self._to.http.is_closed):
                try:
                    with self._to.http.stream(
                        "GET", ENDS, params=query, timeout=SILENT_SECONDS
                    ) as answer:
                        for line in answer.iter_lines():
                            if line == "event: ended" and not stopped.is_set():
                                notify()
                except (*self._to.trouble, RuntimeError) as error:  # the latter if it is closed
                    log.info("not listening for cancels, heartbeats continue: %r", error)
                stopped.wait(RECONNECT_SECONDS)

        _start(listen)
        return stopped.set

    def _ask(self, method: str, path: str, kind: type[T], body: object = None, **more: Any) -> T:
        return finished(self._to.ask(method, path, kind, body, **more))


async def _add(
    to: Transport, new_jobs: Sequence[NewJob], send: Callable[..., Coroutine[Any, Any, Any]]
) -> Any:
    """Call `send` with the headers that name the span of adding jobs, if there is one."""
    if to.tracing is None or not new_jobs:
        return await send()
    queue = new_jobs[0].options.get("queue")  # left out, it is for the server to say
    span, traceparent = to.tracing.adding([new_job.type for new_job in new_jobs], queue, None)
    try:
        made = await send(headers={} if traceparent is None else {"traceparent": traceparent})
    except BaseException as error:
        to.tracing.added(span, [], error)
        raise
    to.tracing.added(span, [job.id for job in (made if isinstance(made, list) else [made])], None)
    return made


def _start(call: Callable[..., None], *arguments: Any) -> None:
    """Call something on a daemon thread: the process can end while it waits for the server."""
    thread = threading.Thread(target=call, args=arguments, name="tenure-client", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # a limit of the machine
        raise StoreUnavailable(f"nothing was sent: {error}") from error


def _cursor_in(links: Mapping[str, Mapping[str, str]]) -> str | None:
    """Return the cursor of the next page, or None on the last page."""
    address = links.get("next", {}).get("url", "")
    return next(iter(parse_qs(urlsplit(address).query).get("cursor", ())), None)


def _path_of(job_id: str) -> str:
    """Return the path of a job; raises JobNotFound for what cannot be an id."""
    if not ids.is_id(job_id):
        raise JobNotFound(job_id)
    return f"/jobs/{job_id}"
