"""Who plays: producers, workers, sweepers and operators, each in its own bad luck."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from tenure.errors import TenureError
from tenure.jobs.checked_job import CheckedJob
from tenure.jobs.enqueue import NewJob, check_job
from tenure.jobs.handlers import Defaults
from tenure.jobs.work import ClaimRequest, Exchange, Lease, Outcome, Report
from tenure.lifecycle import Cancelled, Retried
from tenure.simulator.asks import (
    UNKNOWN,
    Answer,
    Apply,
    Ask,
    Beat,
    Enqueue,
    Prune,
    SetQueue,
    Sweep,
    TakeExchange,
)
from tenure.simulator.plan import MAX_DELAY
from tenure.simulator.world import Server, World

RESEND = 5.0
"""Seconds until an ask without an answer is sent again."""
KEPT = timedelta(hours=4)
"""What pruning leaves: longer than the store's clock is ever stepped back."""
MAX_STEP = 3_600.0
BURST = 5.0
"""Seconds within which a producer sends what comes at once."""
REGRET = 4.0
"""Seconds within which it cancels a job again, if it does."""


class Player:
    """Somebody who asks a server for things, again and again."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.server: Server = world.chance.choice(world.servers)

    def ask(self, ask: Ask, then: Callable[[Answer], None]) -> None:
        """Ask; whoever gets no answer tries another server the next time."""

        def heard(answer: Answer) -> None:
            if answer is UNKNOWN:
                self.server = self.world.chance.choice(self.world.servers)
            then(answer)

        self.world.call(self.server, self.name, ask, heard)

    def every(self, seconds: float, act: Callable[[], None]) -> None:
        """Call `act` about every so many seconds, for ever."""

        def tick() -> None:
            act()
            self.world.later(seconds * (0.5 + self.world.chance.random()), tick)

        self.world.later(seconds * self.world.chance.random(), tick)


def _ignore(_: Answer) -> None:
    """It is tried again anyway."""


class Producer(Player):
    """Adds jobs, and asks again until it knows that they are there."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.known: deque[str] = deque(maxlen=100)
        """Ids of jobs that were accepted."""
        self._new_jobs: deque[NewJob] = deque(maxlen=20)  # with keys
        self._made = 0
        self.every(world.plan.gap, self._produce)

    def _produce(self) -> None:
        if self.world.calm:
            return
        if self.world.strikes("bursts", 0.2):
            for _ in range(self.world.chance.randint(2, 6)):
                self.world.later(self.world.chance.random() * BURST, self._add)
        self._add()

    def _add(self) -> None:
        several = self.world.strikes("batches", 0.2)
        count = self.world.chance.randint(2, 5) if several else 1
        self._send([self._new_job() for _ in range(count)], None)

    def _new_job(self) -> NewJob:
        chance, plan = self.world.chance, self.world.plan
        if self._new_jobs and chance.random() < 0.2:
            again = chance.choice(self._new_jobs)
            if chance.random() < 0.7:
                return again
            return NewJob(again.type, {"other": True}, again.options)
        self._made += 1
        options: dict[str, Any] = {
            "queue": chance.choice(plan.queues),
            "max_retries": chance.choice(plan.limits),
            "backoff": chance.choice(plan.backoffs),
        }
        if self.world.strikes("delays", 0.2):
            options["delay"] = chance.randint(1, int(MAX_DELAY))
        if self.world.strikes("priorities", 0.5):
            options["priority"] = chance.randint(-1, 1)
        keyed = self.world.strikes("keys", 0.5)
        if keyed:
            options["idempotency_key"] = f"{self.name}-{self._made}".replace(" ", "-")
        new_job = NewJob("task", {"number": self._made}, options)  # type: ignore[arg-type]
        if keyed:
            self._new_jobs.append(new_job)
        return new_job

    def _send(self, new_jobs: Sequence[NewJob], before: Sequence[CheckedJob] | None) -> None:
        """Send, under the ids of the first time or, as over HTTP with a key, under new ones."""
        checked_jobs = before
        keyed = all("idempotency_key" in new_job.options for new_job in new_jobs)
        if checked_jobs is None or (keyed and self.world.chance.random() < 0.5):
            checked_jobs = [
                check_job(new_job, self.world.new_id(), defaults=Defaults(), actor=self.name)
                for new_job in new_jobs
            ]
        sent = checked_jobs

        def heard(answer: Answer) -> None:
            if answer is UNKNOWN:
                self.world.later(RESEND, lambda: self._send(new_jobs, sent))
            elif not isinstance(answer, TenureError):
                self.known.extend(added.job.id for added in answer)
                self._regret(answer[-1].job.id)

        self.ask(Enqueue(sent), heard)

    def _regret(self, job_id: str) -> None:
        """Now and then, cancel a job soon after it was added: while it waits, or runs."""
        if self.world.strikes("cancels", 0.1):
            cancel = Apply(job_id, Cancelled(actor=self.name))
            self.world.later(self.world.chance.random() * REGRET, lambda: self.ask(cancel, _ignore))


class Worker(Player):
    """Claims, runs and reports; crashes, freezes, and says things twice or too late."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, "")
        self._number = number
        self._life = 0
        self._frozen_until = 0.0
        self._past: deque[Report] = deque(maxlen=50)  # survives: the network remembers
        world.wake.append(self._exchange)
        self.every(world.plan.poll, self._exchange)
        self.every(world.plan.between_faults, self._have_bad_luck)
        self.every(world.plan.between_faults / 4, self._talk_nonsense)
        self._begin()

    def _begin(self) -> None:
        """A new process: a new name, and nothing remembered."""
        self._life += 1
        self.name = f"worker {self._number + 1}.{self._life}"
        self._up = True
        self._in_turn = False
        self._beating = False
        self._held: dict[str, Lease] = {}  # by lease id, in the order in which they came
        self._running: set[str] = set()
        self._reports: list[Report] = []
        self._exchange()

    def _soon(self, seconds: float, act: Callable[[], None]) -> None:
        """Later, if this process is still there; after its sleep, if it is frozen."""
        life = self._life

        def wake() -> None:
            if life != self._life or not self._up:
                return
            if self._frozen_until > self.world.now:
                self.world.later(self._frozen_until - self.world.now, wake)
            else:
                act()

        self.world.later(seconds, wake)

    @property
    def _awake(self) -> bool:
        return self._up and self._frozen_until <= self.world.now

    def _exchange(self) -> None:
        if not self._awake or self._in_turn:
            return
        plan = self.world.plan
        room = min(plan.slots + plan.ahead - len(self._held), plan.batch)
        reports = self._reports[: 2 * plan.batch]
        claim = None
        if room > 0:
            claim = ClaimRequest(worker=self.name, limit=room, lease_seconds=plan.lease)
        if claim is None and not reports:
            return
        if not reports and self.world.jumps_over(self._finds_nothing()):
            return
        self._in_turn = True

        def heard(answer: Answer) -> None:
            self._soon(0, lambda: self._heard(reports, answer))

        self.ask(TakeExchange(reports, claim), heard)

    def _finds_nothing(self) -> bool:
        return not self.world.auditor.lives.due(self.world.store_time())

    def _heard(self, reports: Sequence[Report], answer: Answer) -> None:
        self._in_turn = False
        if not isinstance(answer, Exchange):
            self._soon(RESEND * self.world.chance.random(), self._exchange)
            return
        self._reports = self._reports[len(reports) :]
        for report in reports:
            self._past.append(report)
        for lease in answer.leases:
            if self.world.strikes("handing back", 0.1):
                self._reports.append(Report(lease.id, lease.lease_id, Outcome.RELEASED))
            else:
                self._held[lease.lease_id] = lease
        self._keep_beating()
        self._start()
        if self._reports or answer.leases:
            self._exchange()

    def _start(self) -> None:
        for lease_id, lease in self._held.items():
            if len(self._running) >= self.world.plan.slots:
                return
            if lease_id not in self._running:
                self._running.add(lease_id)
                self.world.auditor.started(self.name, lease.id, lease.token)
                slow = self.world.strikes("slow handlers", 0.3)
                longest = 4 * self.world.plan.lease if slow else 3.0
                self._soon(self.world.chance.random() * longest, partial(self._finish, lease))

    def _finish(self, lease: Lease) -> None:
        self._running.discard(lease.lease_id)
        if self._held.pop(lease.lease_id, None) is None and self.world.chance.random() < 0.5:
            self._start()
            return  # told that it lost the lease, it stops; or it does not notice
        report = self._outcome(lease)
        if self.world.strikes("late reports", 0.1):
            self.world.auditor.count("late reports")
            late = self.world.chance.random() * 3 * self.world.plan.lease
            self._soon(late, lambda: self._say(report))
        else:
            self._say(report)
        self._start()

    def _say(self, report: Report) -> None:
        self._reports.append(report)
        self._exchange()

    def _outcome(self, lease: Lease) -> Report:
        luck = self.world.chance.random()
        if luck < 0.7:
            result = f'"{lease.token}"'
            return Report(lease.id, lease.lease_id, Outcome.COMPLETED, result)
        error = f"attempt {lease.attempts} failed"
        return Report(lease.id, lease.lease_id, Outcome.FAILED, error=error, retryable=luck < 0.95)

    def _keep_beating(self) -> None:
        """Heartbeats go on as long as there is a lease."""
        if self._held and not self._beating:
            self._beating = True
            self._soon(self.world.plan.lease / 3, self._beat)

    def _beat(self) -> None:
        self._beating = False
        if not self._held:
            return
        self._keep_beating()
        if self.world.strikes("heartbeats missed", 0.5):
            return
        held = [(lease.id, lease_id) for lease_id, lease in self._held.items()]

        def heard(answer: Answer) -> None:
            if isinstance(answer, set):
                for _, lease_id in held:
                    if lease_id not in answer:
                        self._held.pop(lease_id, None)

        life = self._life
        self.ask(
            Beat(held, self.world.plan.lease),
            lambda answer: heard(answer) if life == self._life else None,
        )

    def _have_bad_luck(self) -> None:
        chance = self.world.chance
        if self._up and self.world.strikes("worker crashes", 0.5):
            self.world.auditor.count("worker crashes")
            self.world.auditor.note(f"{self.name} crashes")
            self._up = False
            self.world.later(chance.random() * 60, self._begin)
        elif self._awake and self.world.strikes("worker freezes", 0.5):
            self.world.auditor.count("worker freezes")
            self.world.auditor.note(f"{self.name} freezes")
            self._frozen_until = self.world.now + (1 + 3 * chance.random()) * self.world.plan.lease

    def _talk_nonsense(self) -> None:
        """Say an old report again, the opposite of it, or something about a lease of nobody."""
        if not self._past:
            return
        chance = self.world.chance
        old = chance.choice(self._past)
        if self.world.strikes("contradicting reports", 0.5):
            self.world.auditor.count("old reports repeated or contradicted")
            other = chance.choice((Outcome.COMPLETED, Outcome.FAILED, old.outcome))
            result = (old.result or '"0"') if other is Outcome.COMPLETED else None
            said = Report(old.job_id, old.lease_id, other, result, error="again")
            self.ask(TakeExchange([said, said], None), _ignore)
        if self.world.strikes("forged leases", 0.5):
            self.world.auditor.count("reports under forged leases")
            target = chance.choice(self._past)
            held = next(iter(self._held.values()), None)
            job_id = held.id if held is not None and chance.random() < 0.7 else target.job_id
            if (held is None or old.lease_id != held.lease_id) and job_id != old.job_id:
                forged = Report(job_id, old.lease_id, Outcome.COMPLETED, '"forged"')
                self.ask(TakeExchange([forged], None), _ignore)


class Sweeper(Player):
    """Ends leases that ran out, and deletes what retention lets go."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, f"sweeper {number + 1}")
        self._away_until = 0.0
        self.every(max(world.plan.lease, 30.0), self._sweep)
        self.every(1_800.0, self._prune)
        self.every(world.plan.between_faults, self._go_away)

    def _sweep(self) -> None:
        if self._away_until > self.world.now and not self.world.calm:
            return
        if self.world.jumps_over(not self.world.auditor.lives.held()):
            return
        limit = self.world.plan.sweep_limit

        def heard(answer: Answer) -> None:
            if isinstance(answer, list) and len(answer) >= limit:
                self._sweep()

        self.ask(Sweep(limit), heard)

    def _prune(self) -> None:
        if self.world.has("pruning"):
            self.world.show_time()
            before = datetime.fromtimestamp(self.world.stage.now / 1000, UTC) - KEPT
            statuses = ("completed", "failed", "cancelled")
            self.ask(Prune(dict.fromkeys(statuses, before), 500), _ignore)

    def _go_away(self) -> None:
        if self.world.strikes("sweepers away", 0.5):
            self.world.auditor.count("sweepers away")
            self._away_until = self.world.now + self.world.chance.random() * 900


class Operator(Player):
    """Cancels and retries jobs, pauses and limits queues; and somebody steps the clock."""

    def __init__(self, world: World, producers: Sequence[Producer]) -> None:
        super().__init__(world, "operator")
        self._producers = producers
        self.every(2 * world.plan.gap, self._act)
        self.every(world.plan.between_faults, self._step_clock)

    def _act(self) -> None:
        chance = self.world.chance
        known = chance.choice(self._producers).known
        if known:
            job_id = chance.choice(known)
            if self.world.strikes("cancels", 0.5):
                self.ask(Apply(job_id, Cancelled(actor="operator")), _ignore)
            if self.world.has("operator retries"):
                for other in list(known)[-20:]:
                    if chance.random() < 0.1:
                        event = Retried(more_retries=1, actor="operator")
                        self.ask(Apply(other, event), _ignore)
        queue = chance.choice(self.world.plan.queues)
        if self.world.has("pauses"):
            self.ask(SetQueue(queue, paused=chance.random() < 0.3), _ignore)
        if self.world.has("queue limits"):
            self.ask(SetQueue(queue, max_pending=chance.choice((-1, 0, 1, 3, 10))), _ignore)

    def _step_clock(self) -> None:
        if self.world.strikes("clock steps", 0.5):
            self.world.auditor.count("clock steps")
            step = self.world.chance.choice((1.0, self.world.plan.lease, MAX_STEP))
            off = self.world.clock_off + self.world.chance.choice((-step, step))
            self.world.clock_off = min(max(off, -MAX_STEP), MAX_STEP)
            self.world.auditor.note(f"the clock is {self.world.clock_off:+.0f} s off now")

    def settle_down(self) -> None:
        """Open every queue, and ask until it is so."""
        for queue in self.world.plan.queues:
            self._open(queue)

    def _open(self, queue: str) -> None:
        def heard(answer: Answer) -> None:
            if answer is UNKNOWN:
                self._open(queue)

        self.ask(SetQueue(queue, paused=False, max_pending=-1), heard)
