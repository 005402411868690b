"""What remote workers call over HTTP: the part of `Client` that is a `WorkSource`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from msgspec import UNSET, structs

from tenure.errors import Forbidden, StoreUnavailable, TenureError
from tenure.rules import steps
from tenure.rules.reports import ClaimRequest, Exchange, HeldLeases, Lease, Outcome, Report, Verdict
from tenure.rules.retention import DeclaredType
from tenure.rules.stats import TypeState
from tenure.values.text import quantity
from tenure.wire import kept, responses
from tenure.wire.reports import (
    MAX_WAIT_SECONDS,
    LeaseRequest,
    ProgressEntry,
    StateRequest,
    StepRequest,
    TokenRequest,
    join_lease,
    report_entry,
    split_lease,
)
from tenure.wire.requests import embedded
from tenure.wire.transport import Transport, finished

T = TypeVar("T")

log = logging.getLogger(__name__)

ENDS = "/leases/ended"
SILENT_SECONDS = 40.0  # after which that stream is broken: a sign of life comes every 15 s
RECONNECT_SECONDS = 1.0
MAX_LOGGED = 20
UNKNOWN = (
    "%s could not be made known to the server: %s; the token is not for their queues, or another"
    " program was first, with queues that it is not for. Programs without the handlers do not use"
    " their options"
)
"""Of types: how many, and the first `MAX_LOGGED`."""


class WorkerCalls:
    """What workers call, over a transport that blocks."""

    _to: Transport
    waits = True
    """The server may hold a claim until there is work."""
    exchanges = 1
    """Exchanges that a worker has under way at once."""
    database = None
    """Only the server knows it."""

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
            log.warning("%s could not be handed back: %s", quantity(len(leases), "lease"), error)

    def _report(self, reports: Sequence[Report]) -> list[Verdict]:
        body = [report_entry(report) for report in reports]
        verdicts = self._ask("POST", "/reports", list[responses.VerdictBody], body)
        if [one.lease_id for one in verdicts] != [entry.lease_id for entry in body]:
            raise StoreUnavailable("the server answered other reports than were sent")
        return [Verdict(one.answer, one.recorded, one.retry_in, one.error) for one in verdicts]

    def _claim(self, claim: ClaimRequest) -> list[Lease]:
        wait = min(claim.wait_seconds, MAX_WAIT_SECONDS)
        fields = {**structs.asdict(claim), "label": claim.label or UNSET, "wait_seconds": wait}
        del fields["next_due"]  # a claim that is held until there is work needs no hint
        body = LeaseRequest(**fields)
        leases = self._ask("POST", "/leases", list[responses.LeaseBody], body, wait=wait)
        return [responses.lease_of(lease) for lease in leases]

    def declare(self, options: Mapping[str, DeclaredType]) -> None:
        """Make the options of types known to the server, by name; called by workers.

        Leaves out types with a queue that the token is not for, and logs which these are.
        """
        refused = []
        for name, each in options.items():
            try:
                self._ask("PUT", f"/types/{name}", TypeState, each)
            except Forbidden:
                refused.append(name)
        if refused:
            named = ", ".join(sorted(refused)[:MAX_LOGGED])
            more = ", …" if len(refused) > MAX_LOGGED else ""
            log.warning(UNKNOWN, quantity(len(refused), "type"), named + more)

    def heartbeat(self, leases: HeldLeases, lease_seconds: float) -> Mapping[str, str]:
        """Extend (job id, lease id) leases; returns by lease id which event ended the others."""
        names = [join_lease(*lease) for lease in leases]
        # Leaves time for another try before the leases run out.
        timeout = min(self._to.timeout, max(lease_seconds / 2, 1.0))
        query, kind = {"lease_seconds": str(lease_seconds)}, list[responses.HeldBody]
        answers = self._ask("POST", "/heartbeats", kind, names, query=query, timeout=timeout)
        return {split_lease(a.lease_id)[1]: a.ended_by for a in answers if not a.held}

    def record_progress(self, entries: Sequence[tuple[str, str, steps.JobProgress]]) -> int:
        """Store how far (job id, lease id) attempts have come; returns how many are still held."""
        body = [
            ProgressEntry(p.done, p.total, p.message, lease_id=join_lease(*lease))
            for *lease, p in entries
        ]
        return self._ask("POST", "/progress", responses.RecordedBody, body).recorded

    def ask(self, job_id: str, lease_id: str, call: steps.StepCall) -> Future[Any]:
        """Return what an attempt asks for, as `StepSource`; nothing waits for it here."""
        future: Future[Any] = Future()
        _start(self._take_answer, future, f"/leases/{join_lease(job_id, lease_id)}", call)
        return future

    def _take_answer(self, future: Future[Any], path: str, call: steps.StepCall) -> None:
        try:
            answer = self._answer(path, call)
        except BaseException as error:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
            return
        if future.set_running_or_notify_cancel():
            future.set_result(answer)

    def _answer(self, path: str, call: steps.StepCall) -> steps.StepAnswer:
        if isinstance(call, steps.Load):
            return kept.loaded_of(self._ask("GET", f"{path}/steps", kept.KeptBody))
        if isinstance(call, steps.KeepState):
            body = StateRequest(number=call.number, state=embedded(call.state))
            self._ask("POST", f"{path}/checkpoint", responses.RecordedBody, body)
            return None
        if isinstance(call, steps.FindSignal):
            query = {"number": str(call.number)}
            return kept.found_of(
                self._ask("GET", f"{path}/signals/{call.name}", kept.FoundBody, query=query)
            )
        if isinstance(call, steps.KeepToken):
            payload = None if call.payload is None else embedded(call.payload)
            token = TokenRequest(
                digest=call.digest, name=call.name, payload=payload, label=call.label
            )
            self._ask("POST", f"{path}/signal-tokens", responses.RecordedBody, token)
            return None
        if isinstance(call, steps.ReadParents):
            asked = {"after": call.after, "name": call.name or ""}
            given = {name: value for name, value in asked.items() if value}
            return kept.parents_of(
                self._ask("GET", f"{path}/parents", kept.ParentsBody, query=given)
            )
        step = StepRequest(name=call.name, number=call.number, result=embedded(call.result))
        return steps.Recorded(kept.step_of(self._ask("POST", f"{path}/steps", kept.StepBody, step)))

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


def _start(call: Callable[..., None], *arguments: Any) -> None:
    """Call something on a daemon thread: the process can end while it waits for the server."""
    thread = threading.Thread(target=call, args=arguments, name="tenure-client", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # a limit of the machine
        raise StoreUnavailable(f"nothing was sent: {error}") from error
