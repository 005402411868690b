"""Who uses the queue of a world: producers, workers, sweepers and an operator."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from tenure.errors import TenureError
from tenure.events import Cancelled, Retried
from tenure.rules.jobs import CheckedJob, NewJob, Options, TypeOptions, check_job
from tenure.rules.reports import ClaimRequest, Exchange, Lease, Outcome, Report
from tenure.simulator.database import UNKNOWN
from tenure.simulator.expected import SETTLED
from tenure.simulator.world import SimulatedClient, World

RESEND_SECONDS = 5.0
BURST_SECONDS = 5.0  # a producer sends a burst of jobs within this time
REGRET_SECONDS = 4.0  # it cancels a job within this time after it added it, if it does
MAX_DELAY_SECONDS = 3_600  # longest delay of a new job
QUICK_SECONDS = 3.0  # longest time that a handler takes, unless it is slow
KEPT = timedelta(hours=4)
"""Retention of settled jobs: longer than the store's clock is ever stepped back."""
PRUNE_SECONDS = 1_800.0
MAX_AWAY_SECONDS = 900.0  # of a sweeper
MAX_STEP_SECONDS = 3_600.0  # how far the store's clock is ever off


class SimulatedProducer(SimulatedClient):
    """Adds jobs, and asks again until it knows their outcome."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.known: deque[str] = deque(maxlen=100)
        """Ids of jobs that were accepted."""
        self._keyed: deque[NewJob] = deque(maxlen=20)
        self._made = 0
        world.every(world.plan.gap, self._produce)

    def _produce(self) -> None:
        if self.world.calm:
            return
        count = self.world.chance.randint(3, 7) if self.world.strikes("bursts", 0.2) else 1
        for _ in range(count):
            self.world.later(self.world.chance.random() * BURST_SECONDS, self._enqueue)

    def _enqueue(self) -> None:
        count = self.world.chance.randint(2, 5) if self.world.strikes("batches", 0.2) else 1
        new_jobs = [self._new_job() for _ in range(count)]
        self._send_jobs(new_jobs, self._check(new_jobs))

    def _new_job(self) -> NewJob:
        chance, plan = self.world.chance, self.world.plan
        if self._keyed and chance.random() < 0.2:
            earlier = chance.choice(self._keyed)
            if chance.random() < 0.7:
                return earlier
            return NewJob(earlier.type, {"other": True}, earlier.options)
        self._made += 1
        options: Options = {
            "queue": chance.choice(plan.queues),
            "max_retries": chance.choice(plan.limits),
            "backoff": chance.choice(plan.backoffs),
        }
        if self.world.strikes("delays", 0.2):
            options["delay"] = chance.randint(1, MAX_DELAY_SECONDS)
        if self.world.strikes("priorities", 0.5):
            options["priority"] = chance.randint(-1, 1)
        new_job = NewJob("task", {"number": self._made}, options)
        if self.world.strikes("keys", 0.5):
            options["idempotency_key"] = f"{self.name}-{self._made}".replace(" ", "-")
            self._keyed.append(new_job)
        return new_job

    def _check(self, new_jobs: Sequence[NewJob]) -> Sequence[CheckedJob]:
        return [
            check_job(new_job, self.world.new_id(), defaults=TypeOptions(), actor=self.name)
            for new_job in new_jobs
        ]

    def _send_jobs(self, new_jobs: Sequence[NewJob], sent: Sequence[CheckedJob]) -> None:
        def answer(what: Any) -> None:
            if what is UNKNOWN:
                # Under the ids of the first time or, as over HTTP with a key, under new ones.
                again = sent
                keyed = all("idempotency_key" in new_job.options for new_job in new_jobs)
                if keyed and self.world.chance.random() < 0.5:
                    again = self._check(new_jobs)
                self.world.later(RESEND_SECONDS, partial(self._send_jobs, new_jobs, again))
            elif not isinstance(what, TenureError):
                self.known.extend(enqueued.job.id for enqueued in what)
                if self.world.strikes("cancels", 0.1):  # while it waits or runs
                    cancel = Cancelled(actor=self.name)
                    soon = self.world.chance.random() * REGRET_SECONDS
                    self.world.later(soon, partial(self.send, "apply", self.known[-1], cancel))

        self.send("enqueue", sent, then=answer)


class SimulatedWorker(SimulatedClient):
    """Claims, runs and reports jobs. Crashes, freezes, and repeats and forges reports.

    It is also every process that replaces it after a crash.
    """

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._names = name
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
        self.name = f"{self._names}.{self._process}"
        self._up = True
        self._exchanging = False
        self._beating = False
        self._held: dict[str, Lease] = {}  # by lease id, in the order in which they came
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

    # --- claim, run and report

    def _exchange(self) -> None:
        if not self._awake or self._exchanging:
            return
        plan = self.world.plan
        room = min(plan.slots - len(self._held), plan.batch)
        reports = self._reports[: 2 * plan.batch]
        if not reports:
            due = room > 0 and self.world.auditor.expected.due(self.world.store_time)
            if self.world.skips(idle=not due):
                return
        claim = None
        if room > 0:
            claim = ClaimRequest(worker=self.name, limit=room, lease_seconds=plan.lease)
        self._exchanging = True

        def answer(what: Any) -> None:
            self._later(0, lambda: self._take(reports, what))

        self.send("exchange", reports, claim, then=answer)

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
                self._run(lease)
        if self._reports or answer.leases:
            self._exchange()

    def _run(self, lease: Lease) -> None:
        self._held[lease.lease_id] = lease
        self.world.figures["runs"] += 1
        self.world.note(f"{self.name} runs {lease.id} token {lease.token}")
        slow = self.world.strikes("slow handlers", 0.3)
        longest = 4 * self.world.plan.lease if slow else QUICK_SECONDS
        self._later(self.world.chance.random() * longest, partial(self._finish, lease))
        if not self._beating:
            self._beating = True
            self._later(self.world.plan.lease / 3, self._beat)

    def _finish(self, lease: Lease) -> None:
        del self._held[lease.lease_id]
        luck = self.world.chance.random()
        if luck < 0.7:
            report = Report(lease.id, lease.lease_id, Outcome.COMPLETED, f'"{lease.token}"')
        else:
            again, error = luck < 0.95, f"attempt {lease.attempts} failed"
            report = Report(lease.id, lease.lease_id, Outcome.FAILED, error=error, retryable=again)
        late = self.world.strikes("late reports", 0.1)
        longest = 3 * self.world.plan.lease if late else 0.0
        self._later(self.world.chance.random() * longest, partial(self._send_report, report))

    def _send_report(self, report: Report) -> None:
        self._reports.append(report)
        self._exchange()

    def _beat(self) -> None:
        """Renew all leases, again and again while there are any."""
        self._beating = bool(self._held)
        if self._beating:
            self._later(self.world.plan.lease / 3, self._beat)
            if not self.world.strikes("heartbeats missed", 0.5):
                held = [(lease.id, lease_id) for lease_id, lease in self._held.items()]
                self.send("renew", held, self.world.plan.lease)

    # --- faults

    def _crash_or_freeze(self) -> None:
        world = self.world
        if self._up and world.strikes("worker crashes", 0.5):
            world.note(f"{self.name} crashes")
            self._up = False
            world.later(world.chance.random() * 60, self._start_process)
        elif self._awake and world.strikes("worker freezes", 0.5):
            world.note(f"{self.name} freezes")
            self._frozen_until = world.now + (1 + 3 * world.chance.random()) * world.plan.lease

    def _send_wrong_reports(self) -> None:
        """Repeat or contradict an old report, or report under the lease of another job."""
        if not self._past:
            return
        chance = self.world.chance
        old = chance.choice(self._past)
        if self.world.strikes("old reports repeated or contradicted", 0.5):
            outcome = chance.choice((*Outcome, old.outcome))
            result = (old.result or '"0"') if outcome is Outcome.COMPLETED else None
            report = Report(old.job_id, old.lease_id, outcome, result, error="again")
            self.send("exchange", [report, report], None)
        if self.world.strikes("reports under forged leases", 0.5):
            held = [lease.id for lease in self._held.values()]
            job_id = chance.choice(held or [report.job_id for report in self._past])
            if job_id != old.job_id:
                forged = Report(job_id, old.lease_id, Outcome.COMPLETED, '"forged"')
                self.send("exchange", [forged], None)


class SimulatedSweeper(SimulatedClient):
    """Ends leases that ran out, and deletes old jobs."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._away_until = 0.0
        world.every(max(world.plan.lease, 30.0), self._sweep)
        world.every(PRUNE_SECONDS, self._prune)
        world.every(world.plan.between_faults, self._go_away)

    def _sweep(self) -> None:
        if self._away_until > self.world.now and not self.world.calm:
            return
        held = any(job.lease_id for job in self.world.auditor.expected.open.values())
        if not self.world.skips(idle=not held):
            self.send("sweep", self.world.plan.sweep_limit)

    def _prune(self) -> None:
        if self.world.strikes("pruning", 1.0):
            self.send("prune", dict.fromkeys(SETTLED, self.world.store_time - KEPT))

    def _go_away(self) -> None:
        if self.world.strikes("sweepers away", 0.5):
            self._away_until = self.world.now + self.world.chance.random() * MAX_AWAY_SECONDS


class SimulatedOperator(SimulatedClient):
    """Cancels and retries jobs, pauses and limits queues, and steps the store's clock."""

    def __init__(self, world: World, producers: Sequence[SimulatedProducer]) -> None:
        super().__init__(world, "operator")
        self._producers = producers
        world.every(2 * world.plan.gap, self._operate)
        world.every(world.plan.between_faults, self._step_clock)

    def _operate(self) -> None:
        chance, world = self.world.chance, self.world
        for job_id in list(chance.choice(self._producers).known)[-20:]:
            if world.strikes("operator retries", 0.1):
                self.send("apply", job_id, Retried(more_retries=1, actor="operator"))
            if world.strikes("cancels", 0.05):
                self.send("apply", job_id, Cancelled(actor="operator"))
        queue = chance.choice(world.plan.queues)
        if world.strikes("pauses", 1.0):
            self.send("set_queue", queue, chance.random() < 0.3, None)
        if world.strikes("queue limits", 1.0):
            self.send("set_queue", queue, None, chance.choice((-1, 0, 1, 3, 10)))

    def _step_clock(self) -> None:
        world = self.world
        if world.strikes("clock steps", 0.5):
            step = world.chance.choice((1.0, world.plan.lease, MAX_STEP_SECONDS))
            off = world.clock_off + world.chance.choice((-step, step))
            world.clock_off = min(max(off, -MAX_STEP_SECONDS), MAX_STEP_SECONDS)
            world.note(f"the clock is {world.clock_off:+.0f} s off now")

    def open_queue(self, queue: str) -> None:
        """Resume a queue and lift its limit; ask again until that is done."""

        def answer(what: Any) -> None:
            if what is UNKNOWN:
                self.open_queue(queue)

        self.send("set_queue", queue, False, -1, then=answer)
