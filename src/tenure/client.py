"""Tenure over HTTP: the verbs of the application, for producers and workers on other machines.

    client = Client("http://127.0.0.1:8080")
    job = client.enqueue("send_email", {"to": "a@example.com"}, max_retries=5)

A client raises the exceptions that the application raises. A failure of the network raises
StoreUnavailable: the outcome may be unknown. A remote worker uses a client as its application.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from math import inf
from typing import Any, Self, TypeVar, Unpack
from urllib.parse import parse_qs, urlsplit

from msgspec import structs

from tenure.errors import InvalidInput, JobNotFound
from tenure.lifecycle import Job
from tenure.rules.explain import Explanation
from tenure.rules.jobs import Duration, NewJob, Options, listed
from tenure.rules.ledger import Transition
from tenure.rules.search import MAX_LISTED, Fields, Order
from tenure.rules.signals import Signal, check_signal_name, signal_text
from tenure.rules.stats import Count
from tenure.values import durations, ids
from tenure.values.names import check_choice, check_key
from tenure.values.numbers import whole
from tenure.wire import requests, responses
from tenure.wire.transport import DEFAULT_TIMEOUT_SECONDS, Transport, blocking
from tenure.wire.worker_calls import WorkerCalls

T = TypeVar("T")


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

        Raises InvalidInput if `url` is not such an address, if `token` is not visible ASCII, or if
        a library is not installed.
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

        Raises what `Tenure.enqueue` raises, Unauthorized or Forbidden. After StoreUnavailable the
        outcome may be unknown: enqueue again, with an `idempotency_key` if one job must not become
        two.
        """
        new_job = NewJob(type, {} if payload is None else payload, options)
        body = _body(new_job, "$")
        job: Job = await _add(self._to, [new_job], partial(self._to.job, "POST", "/jobs", body))
        return job

    async def enqueue_many(self, new_jobs: Iterable[NewJob]) -> list[Job]:
        """Add up to 10,000 jobs in one transaction, all or none; returns them in the same order.

        As JSON they are at most 32 MiB in all.

        Raises what `enqueue` raises. The path of an InvalidInput names the job.
        """
        jobs = listed(new_jobs)
        for number, new in enumerate(jobs):
            if new.again_of is not None:
                said = "the API adds such a job by POST /jobs/{id}/run-again only"
                raise InvalidInput(said, path=f"$[{number}].again_of")
        body = [_body(new, f"$[{number}]") for number, new in enumerate(jobs)]
        send = partial(self._to.ask, "POST", "/jobs/batch", list[responses.JobBody], body)
        return [responses.job_of(one) for one in await _add(self._to, jobs, send)]

    async def get(self, job_id: str) -> Job:
        """Return a job; raises JobNotFound."""
        return await self._to.job("GET", _path_of(job_id))

    async def wait(self, job_id: str, timeout: Duration | None = None) -> Job:
        """Return a job once it is settled: completed, failed for good, or cancelled.

        - `timeout`: a duration to wait at most. Default: None, as long as it takes.

        Makes a request per minute. Raises JobNotFound, StoreUnavailable, or TimeoutError if the job
        is not settled in time. The job then continues.
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
                raise TimeoutError(f"job {job_id} is not settled after {limit:g} s; it continues")

    async def find(
        self,
        *,
        limit: int = 50,
        before: str | None = None,
        after: str | None = None,
        order: Order = "newest",
        **filter: Unpack[Fields],
    ) -> list[Job]:
        """Return the jobs that match a filter, newest first.

        - `limit`: most jobs to return, 1 to 500. Default: 50. Several requests are made if needed.
        - `before`: id of the last job of the page before. Default: begin with the newest.
        - `after`: the same where the oldest come first. Default: begin with the oldest.
        - `order`: which come first, `newest` or `oldest`. Default: `newest`.
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
        check_choice(order, Order, "$.order")
        if (other := after if order == "newest" else before) is not None:
            where = "$.after" if other is after else "$.before"
            raise InvalidInput("before is for newest first, after for oldest first", path=where)
        name, last = ("before", before) if order == "newest" else ("after", after)
        cursor = last and ids.check_id(last, f"$.{name}").replace("-", "")
        whole(limit, 1, MAX_LISTED, "$.limit")
        jobs: list[Job] = []
        while True:
            page = {**query, "order": order, "limit": str(limit - len(jobs))}
            if cursor:
                page["cursor"] = cursor
            response = await self._to.request("GET", "/jobs", query=page)
            jobs += map(responses.job_of, self._to.read(response, "/jobs", list[responses.JobBody]))
            cursor = _cursor_in(response.links)
            if cursor is None or len(jobs) == limit:
                return jobs

    async def history(self, job_id: str) -> list[Transition]:
        """Return the transitions of a job, oldest first; raises JobNotFound.

        Several requests are made if needed.
        """
        path, query = f"{_path_of(job_id)}/history", dict[str, str]()
        entries: list[responses.TransitionBody] = []
        while True:
            response = await self._to.request("GET", path, query=query)
            entries[:0] = self._to.read(response, path, list[responses.TransitionBody])
            cursor = _cursor_in(response.links)
            if cursor is None:
                return [Transition(**structs.asdict(entry)) for entry in entries]
            query = {"cursor": cursor}

    async def explain(self, job_id: str) -> Explanation:
        """Return why a job is not running; raises JobNotFound."""
        return await self._to.ask("GET", f"{_path_of(job_id)}/explain", Explanation)

    async def cancel(self, job_id: str, *, reason: str | None = None) -> Job:
        """Cancel a job that is not settled, for a `reason` of at most 500 characters.

        Raises JobNotFound, IllegalTransition or InvalidInput.
        """
        return await self._to.job("POST", f"{_path_of(job_id)}/cancel", {"reason": reason})

    async def retry(
        self,
        job_id: str,
        *,
        more_retries: int = 1,
        from_scratch: bool = False,
        reason: str | None = None,
    ) -> Job:
        """Make a finally failed job pending, with `more_retries` (1 to 1,000) more attempts.

        Arguments and errors are those of `Tenure.retry`.
        """
        body = {"more_retries": more_retries, "from_scratch": from_scratch, "reason": reason}
        return await self._to.job("POST", f"{_path_of(job_id)}/retry", body)

    async def unblock(self, job_id: str) -> Job:
        """Let a waiting job run now, whatever it waits for.

        Raises JobNotFound or IllegalTransition.
        """
        return await self._to.job("POST", f"{_path_of(job_id)}/unblock")

    async def signal(
        self, job: Job | str, name: str, payload: object = None, key: str | None = None
    ) -> Signal:
        """Send a signal to a job. Arguments and errors are those of `Tenure.signal`."""
        path = f"{_path_of(ids.id_of(job))}/signals/{check_signal_name(name)}"
        headers = {} if key is None else {"Idempotency-Key": check_key(key, "$.key")}
        body = None if payload is None else requests.embedded(signal_text(payload))
        kind = responses.SignalBody
        return responses.signal_of(await self._to.ask("POST", path, kind, body, headers=headers))

    async def stats(self) -> list[Count]:
        """Return the number of jobs by status, queue and type."""
        return list((await self._to.ask("GET", "/stats", responses.StatsBody)).counts)


class Client(WorkerCalls, _Client):
    """A client of one Tenure server. Thread-safe. Close it, or use it with `with`."""

    _blocks = True

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
    unblock = blocking(AsyncClient.unblock)
    signal = blocking(AsyncClient.signal)
    stats = blocking(AsyncClient.stats)


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


def _cursor_in(links: Mapping[str, Mapping[str, str]]) -> str | None:
    """Return the cursor of the next page, or None on the last page."""
    address = links.get("next", {}).get("url", "")
    return next(iter(parse_qs(urlsplit(address).query).get("cursor", ())), None)


def _body(new: NewJob, at: str) -> dict[str, Any]:
    if "actor" in new.options:
        said = "the history names the server's caller: leave it out"
        raise InvalidInput(said, path=f"{at}.actor")
    return requests.new_job(new, at)


def _path_of(job_id: str) -> str:
    """Return the path of a job; raises JobNotFound for what cannot be an id."""
    if not ids.is_id(job_id):
        raise JobNotFound(job_id)
    return f"/jobs/{job_id}"
