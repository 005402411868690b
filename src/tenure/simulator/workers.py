"""Simulated workers: they crash, freeze, and repeat, delay, contradict and forge reports."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tenure.jobs.work import ClaimRequest, Exchange, Lease, Outcome, Report
from tenure.simulator.calls import ExchangeCall, HeartbeatCall
from tenure.simulator.producers import RESEND_SECONDS
from tenure.simulator.world import SimulatedClient, World

QUICK_SECONDS = 3.0  # longest time that a handler takes, unless it is slow


class SimulatedWorker(SimulatedClient):
    """A process that claims, runs and reports jobs; and every process that replaces it."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, "")
        self._number = number
        self._process = 0
        self._frozen_until = 0.0
        self._past: deque[Report] = deque(maxlen=50)  # survives a crash: the network remembers
        world.wake.append(self._exchange)
        world.every(world.plan.poll, self._exchange)
        world.every(world.plan.between_faults, self._crash_or_freeze)
        world.every(world.plan.between_faults / 4, self._send_wrong_reports)
        self._start_process()

    def _start_process(self) -> None:
        """Start under a new name, with nothing remembered."""
        self._process += 1
        self.name = f"worker {self._number + 1}.{self._process}"
        self._up = True
        self._exchanging = False
        self._beating = False
        self._held: dict[str, Lease] = {}  # by lease id, in the order in which they came
        self._running: set[str] = set()
        self._reports: list[Report] = []
        self._exchange()

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        """Call `act` later, if this process still runs; if it is frozen, once it is not."""
        process = self._process

        def wake() -> None:
            if process != self._process or not self._up:
                return
            if self._frozen_until > self.world.now:
                self.world.later(self._frozen_until - self.world.now, wake)
            else:
                act()

        self.world.later(seconds, wake)

    @property
    def _awake(self) -> bool:
        return self._up and self._frozen_until <= self.world.now

    # --- claim and report

    def _exchange(self) -> None:
        if not self._awake or self._exchanging:
            return
        plan = self.world.plan
        room = min(plan.slots + plan.ahead - len(self._held), plan.batch)
        reports = self._reports[: 2 * plan.batch]
        claim = None
        if room > 0:
            claim = ClaimRequest(worker=self.name, limit=room, lease_seconds=plan.lease)
        if not reports:
            if claim is None:
                return
            due = self.world.auditor.jobs.due(self.world.store_time())
            if self.world.skips(idle=not due):
                return
        self._exchanging = True

        def answer(what: Any) -> None:
            self._later(0, lambda: self._take(reports, what))

        self.send(ExchangeCall(reports, claim), answer)

    def _take(self, reports: Sequence[Report], answer: Any) -> None:
        self._exchanging = False
        if not isinstance(answer, Exchange):
            self._later(RESEND_SECONDS * self.world.chance.random(), self._exchange)
            return
        self._reports = self._reports[len(reports) :]
        self._past.extend(reports)
        for lease in answer.leases:
            if self.world.strikes("handing back", 0.1):
                self._reports.append(Report(lease.id, lease.lease_id, Outcome.RELEASED))
            else:
                self._held[lease.lease_id] = lease
        self._keep_beating()
        self._start_handlers()
        if self._reports or answer.leases:
            self._exchange()

    # --- run

    def _start_handlers(self) -> None:
        for lease_id, lease in self._held.items():
            if len(self._running) >= self.world.plan.slots:
                return
            if lease_id not in self._running:
                self._running.add(lease_id)
                self.world.auditor.started(self.name, lease.id, lease.token)
                slow = self.world.strikes("slow handlers", 0.3)
                longest = 4 * self.world.plan.lease if slow else QUICK_SECONDS
                self._later(self.world.chance.random() * longest, partial(self._finish, lease))

    def _finish(self, lease: Lease) -> None:
        self._running.discard(lease.lease_id)
        lost = self._held.pop(lease.lease_id, None) is None
        if lost and self.world.chance.random() < 0.5:  # otherwise it does not notice
            self._start_handlers()
            return
        report = self._report(lease)
        if self.world.counted("late reports", 0.1):
            late = self.world.chance.random() * 3 * self.world.plan.lease
            self._later(late, lambda: self._send_report(report))
        else:
            self._send_report(report)
        self._start_handlers()

    def _report(self, lease: Lease) -> Report:
        luck = self.world.chance.random()
        if luck < 0.7:
            return Report(lease.id, lease.lease_id, Outcome.COMPLETED, f'"{lease.token}"')
        error = f"attempt {lease.attempts} failed"
        return Report(lease.id, lease.lease_id, Outcome.FAILED, error=error, retryable=luck < 0.95)

    def _send_report(self, report: Report) -> None:
        self._reports.append(report)
        self._exchange()

    # --- heartbeats

    def _keep_beating(self) -> None:
        if self._held and not self._beating:
            self._beating = True
            self._later(self.world.plan.lease / 3, self._beat)

    def _beat(self) -> None:
        self._beating = False
        if not self._held:
            return
        self._keep_beating()
        if self.world.strikes("heartbeats missed", 0.5):
            return
        held = [(lease.id, lease_id) for lease_id, lease in self._held.items()]
        process = self._process

        def answer(what: Any) -> None:
            if process == self._process and isinstance(what, set):
                for _, lease_id in held:
                    if lease_id not in what:
                        self._held.pop(lease_id, None)

        self.send(HeartbeatCall(held, self.world.plan.lease), answer)

    # --- faults

    def _crash_or_freeze(self) -> None:
        world = self.world
        if self._up and world.counted("worker crashes", 0.5):
            world.auditor.note(f"{self.name} crashes")
            self._up = False
            world.later(world.chance.random() * 60, self._start_process)
        elif self._awake and world.counted("worker freezes", 0.5):
            world.auditor.note(f"{self.name} freezes")
            self._frozen_until = world.now + (1 + 3 * world.chance.random()) * world.plan.lease

    def _send_wrong_reports(self) -> None:
        """Repeat or contradict an old report, or report under the lease of another job."""
        if not self._past:
            return
        chance = self.world.chance
        old = chance.choice(self._past)
        name = "old reports repeated or contradicted"
        if self.world.counted("contradicting reports", 0.5, name=name):
            outcome = chance.choice((Outcome.COMPLETED, Outcome.FAILED, old.outcome))
            result = (old.result or '"0"') if outcome is Outcome.COMPLETED else None
            report = Report(old.job_id, old.lease_id, outcome, result, error="again")
            self.send(ExchangeCall([report, report], None))
        if self.world.counted("forged leases", 0.5, name="reports under forged leases"):
            target = chance.choice(self._past)
            held = next(iter(self._held.values()), None)
            job_id = held.id if held is not None and chance.random() < 0.7 else target.job_id
            if (held is None or old.lease_id != held.lease_id) and job_id != old.job_id:
                forged = Report(job_id, old.lease_id, Outcome.COMPLETED, '"forged"')
                self.send(ExchangeCall([forged], None))
