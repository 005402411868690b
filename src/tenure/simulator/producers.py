"""Simulated producers: they add jobs, and ask again until they know what became of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from tenure.errors import TenureError
from tenure.jobs.enqueue import CheckedJob, Defaults, NewJob, check_job
from tenure.lifecycle import Cancelled
from tenure.simulator.calls import UNKNOWN, EnqueueCall, OperatorCall
from tenure.simulator.plan import MAX_DELAY_SECONDS
from tenure.simulator.world import SimulatedClient, World

RESEND_SECONDS = 5.0
BURST_SECONDS = 5.0  # a producer sends a burst of jobs within this time
REGRET_SECONDS = 4.0  # it cancels a job within this time after it added it, if it does


class SimulatedProducer(SimulatedClient):
    """A process that enqueues jobs."""

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
        if self.world.strikes("bursts", 0.2):
            for _ in range(self.world.chance.randint(2, 6)):
                self.world.later(self.world.chance.random() * BURST_SECONDS, self._enqueue)
        self._enqueue()

    def _enqueue(self) -> None:
        several = self.world.strikes("batches", 0.2)
        count = self.world.chance.randint(2, 5) if several else 1
        self._send_jobs([self._new_job() for _ in range(count)], None)

    def _new_job(self) -> NewJob:
        chance, plan = self.world.chance, self.world.plan
        if self._keyed and chance.random() < 0.2:
            earlier = chance.choice(self._keyed)
            if chance.random() < 0.7:
                return earlier
            return NewJob(earlier.type, {"other": True}, earlier.options)
        self._made += 1
        options: dict[str, Any] = {
            "queue": chance.choice(plan.queues),
            "max_retries": chance.choice(plan.limits),
            "backoff": chance.choice(plan.backoffs),
        }
        if self.world.strikes("delays", 0.2):
            options["delay"] = chance.randint(1, int(MAX_DELAY_SECONDS))
        if self.world.strikes("priorities", 0.5):
            options["priority"] = chance.randint(-1, 1)
        keyed = self.world.strikes("keys", 0.5)
        if keyed:
            options["idempotency_key"] = f"{self.name}-{self._made}".replace(" ", "-")
        new_job = NewJob("task", {"number": self._made}, options)  # type: ignore[arg-type]
        if keyed:
            self._keyed.append(new_job)
        return new_job

    def _send_jobs(self, new_jobs: Sequence[NewJob], sent: Sequence[CheckedJob] | None) -> None:
        """Send under the ids of the first time or, as over HTTP with a key, under new ones."""
        keyed = all("idempotency_key" in new_job.options for new_job in new_jobs)
        checked_jobs = sent
        if checked_jobs is None or (keyed and self.world.chance.random() < 0.5):
            checked_jobs = [
                check_job(new_job, self.world.new_id(), defaults=Defaults(), actor=self.name)
                for new_job in new_jobs
            ]

        def answer(what: Any) -> None:
            if what is UNKNOWN:
                self.world.later(RESEND_SECONDS, lambda: self._send_jobs(new_jobs, checked_jobs))
            elif not isinstance(what, TenureError):
                self.known.extend(enqueued.job.id for enqueued in what)
                self._regret(what[-1].job.id)

        self.send(EnqueueCall(checked_jobs), answer)

    def _regret(self, job_id: str) -> None:
        """Sometimes cancel a job soon after it was added, while it waits or runs."""
        if self.world.strikes("cancels", 0.1):
            cancel = OperatorCall(job_id, Cancelled(actor=self.name))
            delay = self.world.chance.random() * REGRET_SECONDS
            self.world.later(delay, lambda: self.send(cancel))
