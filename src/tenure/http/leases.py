"""What workers call over HTTP: lease jobs, report outcomes, extend leases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import asdict, replace
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tenure.app import jobs as app_jobs
from tenure.app.twins import answer_of
from tenure.errors import Forbidden, TenureError
from tenure.http import waiting
from tenure.http.call import Call, answer
from tenure.http.guard import check_again
from tenure.http.waiting import PING, EventStream, Source, check_room, look_pause, until_gone
from tenure.rules.jobs import TypeOptions, defaults_of
from tenure.rules.reports import ClaimRequest, FollowUps, Lease, Outcome, Report, Verdict
from tenure.rules.retention import DeclaredType, kept_for
from tenure.rules.steps import FindSignal, Load, Recorded, StepCall
from tenure.rules.tokens import Scope
from tenure.telemetry import tracing
from tenure.values.ids import is_id
from tenure.values.names import check_name, check_open
from tenure.values.payload import damage
from tenure.wire import kept, reports, requests, responses
from tenure.wire.problems import storable
from tenure.wire.reports import add

ENDED = b"event: ended\ndata: {}\n\n"
MAX_END_STREAMS = 500
"""Workers that learn of cancels at once. The others learn of them with a heartbeat."""


async def lease_jobs(call: Call) -> Response:
    """Lease jobs to a worker, waiting for some up to `wait_seconds`."""
    body: reports.LeaseRequest = call.body
    queues = _names(body.queues, check_open, "queue", "queues")
    types = _names(body.types, check_name, "job type", "types")
    given = {**requests.given(body), "worker": call.caller.worker(body.worker)}
    wanted = ClaimRequest(**{**given, "queues": queues, "types": types})
    leases = await _claim(call, wanted)
    return answer([responses.lease_body(lease) for lease in leases])


async def _claim(call: Call, wanted: ClaimRequest) -> Sequence[Lease]:
    """Lease jobs, waiting up to `wait_seconds`; no jobs once the server stops.

    Nothing is claimed for a token that was revoked meanwhile: raises Unauthorized. Nothing is
    claimed for a client that has disconnected. What was claimed while it disconnected is
    released, so that no job waits for a lease that no worker knows of.
    """
    app, notifier, loop = call.app, call.notifier, asyncio.get_running_loop()
    deadline = loop.time() + wanted.wait_seconds
    with notifier.waiter() as waiter:
        gone = loop.create_task(until_gone(call.request, waiter))
        try:
            await asyncio.sleep(0)  # so that a disconnection that is already known is noticed
            while not (gone.done() or notifier.stopped):
                claim = replace(wanted, next_due=True)
                if app.core.queues is not None:
                    claim = await run_in_threadpool(app.core.claim_within, claim)
                exchange = await answer_of(app.core.exchange((), claim))
                leases = exchange.leases
                if leases and gone.done():
                    released = [Report(x.id, x.lease_id, Outcome.RELEASED) for x in leases]
                    await answer_of(app.core.exchange(released, None))
                    break
                leases = await _without_damaged(call, leases, wanted.worker)
                left = deadline - loop.time()
                if leases or left <= 0:
                    return leases
                await waiter.wait(min(left, look_pause(exchange.next_due)))
                await check_again(call.request.scope)
        finally:
            gone.cancel()
    return ()


async def _without_damaged(call: Call, leases: Sequence[Lease], worker: str) -> Sequence[Lease]:
    """Return the leases that can be sent. The other jobs fail for good, each alone.

    Such a row was written while the guards of the database were off. In the answer it would cost
    the worker all the others.
    """
    flaws = {lease.lease_id: flaw for lease in leases if (flaw := _flaw_of(lease))}
    if not flaws:
        return leases
    failed = [
        Report(
            lease.id,
            lease.lease_id,
            Outcome.FAILED,
            error=f"{flaws[lease.lease_id]}; no worker can run it: add the job again",
            retryable=False,
            actor=worker,
        )
        for lease in leases
        if lease.lease_id in flaws
    ]
    await answer_of(call.app.core.exchange(failed, None))
    return [lease for lease in leases if lease.lease_id not in flaws]


def _flaw_of(lease: Lease) -> str:
    if not is_id(lease.id):  # no worker could report on it
        return f"{lease.id!r} is not a job id"
    return damage(lease.payload)


def _names(
    names: list[str] | None, check: Callable[[str, str, str], str], what: str, field: str
) -> tuple[str, ...] | None:
    if names is None:
        return None
    return tuple(check(name, what, f"$.{field}[{at}]") for at, name in enumerate(names))


async def report_many(call: Call) -> Response:
    """Report on many leases at once; a verdict for each, in order."""
    if types := [job.type for entry in call.body for job in entry.jobs or ()]:
        await call.app.core.defaults.look_up(types)
    made = await call.compute(_reports, call)
    exchange = await answer_of(call.app.core.exchange(made, None))
    return await call.compute(_verdicts, call.body, exchange.verdicts)


def _reports(call: Call) -> list[Report]:
    entries: Sequence[reports.ReportEntry] = call.body
    return [_adding(call, entry) if entry.jobs else reports.report_of(entry) for entry in entries]


def _adding(call: Call, entry: reports.ReportEntry) -> Report:
    """Return a report that adds jobs. If they are refused, its attempt fails: it has ended."""
    core, jobs = call.app.core, FollowUps(call.app.core.defaults.known)
    parent = tracing.given([entry.traceparent]) if entry.traceparent else None
    report = reports.report_of(entry)
    try:
        if not call.caller.may(frozenset({Scope.ENQUEUE})):
            raise Forbidden("a report that adds jobs needs a token with the scope enqueue, too")
        for job in entry.jobs or ():
            if job.again_of and core.queues is not None:  # it may be a job of others
                raise Forbidden("a new job with again_of needs a token for every queue")
            add(job, jobs, call.caller.name)
        own_keys = bool(call.redaction)
        signed = jobs.signed(call.caller.name, parent)
        return replace(report, jobs=app_jobs.allowed(core, signed, own_keys=own_keys))
    except TenureError as refusal:
        return replace(report, jobs=refusal)


def _verdicts(entries: Sequence[reports.ReportEntry], verdicts: Sequence[Verdict]) -> Response:
    shown = responses.VerdictBody.of
    pairs = zip(entries, verdicts, strict=True)
    return answer([shown(verdict, lease_id=storable(e.lease_id)) for e, verdict in pairs])


def renew_leases(call: Call) -> Response:
    """Extend many leases at once; whether each is still held, in order."""
    leases = [reports.split_lease(name) for name in call.body]
    ended = call.app.core.heartbeat(leases, call.query.lease_seconds) if leases else {}
    return answer(
        [
            responses.HeldBody(
                lease_id=storable(name), held=id not in ended, ended_by=ended.get(id, "")
            )
            for name, (_, id) in zip(call.body, leases, strict=True)
        ]
    )


async def stream_ends(call: Call) -> Response:
    """Stream an event at the start, and when a running job of a worker may have been cancelled.

    After each, the worker sends a heartbeat: that says which leases have ended.
    """
    call.check_running()
    check_room(call.notifier.end_streams, MAX_END_STREAMS)
    return EventStream(call.request.scope, _ends(call), call.notifier.end_streams)


async def _ends(call: Call) -> Source:
    with call.notifier.waiter(call.caller.worker(call.query.worker)) as waiter:
        notified = True
        while not call.notifier.stopped:
            yield (ENDED if notified else b""), PING
            notified = await waiter.wait(waiting.RECHECK_SECONDS)


def record_progress(call: Call) -> Response:
    """Store how far attempts have come, at most once a second or so for all of a worker."""
    body: list[reports.ProgressEntry] = call.body
    said = [(*reports.split_lease(one.lease_id), reports.progress_of(one)) for one in body]
    return answer(responses.RecordedBody(call.app.core.record_progress(said)))


async def load_steps(call: Call) -> Response:
    """Show what the attempts of a leased job have kept: steps, and the last state."""
    loaded = await _asked(call, Load())
    return await run_in_threadpool(lambda: answer(kept.kept_body(loaded)))


async def show_parents(call: Call) -> Response:
    """Show jobs that a leased job depends on, with their results."""
    parents = await _asked(call, kept.parents_asked(call.query))
    return await run_in_threadpool(lambda: answer(kept.parents_body(parents)))


async def record_step(call: Call) -> Response:
    """Record a step of a leased job; a name that is on record answers that step."""
    recorded: Recorded = await _asked(call, await call.compute(kept.record_of, call.body))
    return answer(kept.step_body(recorded.step))


async def keep_state(call: Call) -> Response:
    """Keep the state that the next attempt of a leased job continues from."""
    await _asked(call, await call.compute(kept.state_of, call.body))
    return answer(responses.RecordedBody(1))


async def find_signal(call: Call) -> Response:
    """Look for a signal to a leased job: what it says, if it is there."""
    wanted = FindSignal(call.path["signal"], call.query.number)
    return answer(kept.found_body(await _asked(call, wanted)))


async def keep_signal_token(call: Call) -> Response:
    """Keep a one-use token of a signal to a leased job, by its digest."""
    await _asked(call, await call.compute(kept.token_of, call.body))
    return answer(responses.RecordedBody(1))


async def _asked(call: Call, asked: StepCall) -> Any:
    """Return the answer to what an attempt asks for; raises LeaseLost."""
    lease = reports.split_lease(call.path["lease"])
    return await answer_of(call.app.core.ask(*lease, asked))


def declare_type(call: Call) -> Response:
    """Make the options of a type known, of which the worker has the handler."""
    name = check_open(call.path["name"], "job type", "name")
    options = defaults_of(requests.options_of(call.body), TypeOptions())
    keep = requests.given(call.body.keep) if call.body.keep else {}
    keep = {status: kept_for(seconds) for status, seconds in keep.items()}
    known = DeclaredType(**asdict(options), schema=call.body.schema, keep=keep)
    call.app.core.declare({name: known})
    return answer(next(type for type in call.app.types.list() if type.name == name))
