"""The same game as `histories.History`, played by a seeded die instead of Hypothesis.

Hypothesis makes short histories that it can shrink, and likes to repeat itself; these are long and
evenly mixed. A failure names the seed and the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from hypothesis.stateful import MultipleResults

from tenure.events import Cancelled, Retried
from tenure.rules.jobs import CheckedJob
from tenure.rules.reports import Outcome
from tests.model.histories import AT_ONCE, LEASE_SECONDS, LISTED, SLOWLY, STEPS, History, Receipt
from tests.model.reference import OUTCOMES


class Walk:
    """One long history. What is drawn depends on the seed alone, not on ids that a store makes."""

    def __init__(self, machine: History, seed: int) -> None:
        self.machine = machine
        self.die = Random(seed)
        self.checked_jobs: list[CheckedJob] = values(machine.open())
        self.leases: list[Receipt] = []
        self.log: list[str] = [f"seed {seed}"]
        self.steps: list[tuple[int, Callable[[], None]]] = [
            (3, self.add),
            (1, self.add_again),
            (6, self.claim),
            (6, self.work),
            (3, self.report),
            (2, self.complete_in_a_transaction),
            (4, self.report_any),
            (2, self.renew),
            (3, self.apply),
            (2, self.seldom),
            (4, self.let_time_pass),
            (4, self.go_to_a_boundary),
        ]

    def go(self, steps: int) -> None:
        """Take `steps` steps and compare everything after each."""
        weights = [weight for weight, _ in self.steps]
        for _ in range(steps):
            ((_, step),) = self.die.choices(self.steps, weights)
            self.log.append(step.__name__)
            try:
                step()
                self.machine.rows_are_the_same()
                self.machine.the_ledger_is_the_same()
                self.machine.no_invariant_is_broken()
            except Exception as error:
                error.add_note(", ".join(self.log))
                raise

    def some(self, most: int) -> list[tuple[Receipt, Outcome]]:
        """A few leases, mostly young ones, with something to say of each."""
        young = self.leases[-12:]
        count = self.die.randint(1, most)
        chosen = [self.die.choice(self.die.choice([young, self.leases])) for _ in range(count)]
        return [(lease, self.die.choice(OUTCOMES)) for lease in chosen]

    def add(self) -> None:
        draw = self.die.choice
        added = self.machine.add(
            count=draw([1, 1, 2, 3]),
            key=draw([None, *"abcd"]),
            same_key=draw([True, False, False]),
            fingerprint=draw("ffg"),
            delay=draw([0.0, 0.0, 0.001, 5.0]),
            priority=draw([-1, 0, 0, 1]),
            max_retries=draw([0, 1, 2, 3, 3]),
            backoff=draw([AT_ONCE, SLOWLY, LISTED]),
        )
        self.checked_jobs += values(added)

    def add_again(self) -> None:
        self.machine.add_again(checked_job=self.die.choice(self.checked_jobs))

    def claim(self) -> None:
        claimed = self.machine.claim(
            limit=self.die.randint(1, 3),
            worker=self.die.choice(["w1", "w2"]),
            wait=self.die.random() < 0.8,
        )
        self.leases += values(claimed)

    def work(self) -> None:
        if self.machine.held():
            said = [self.die.choice(OUTCOMES) for _ in range(self.die.randint(1, 3))]
            leased = self.machine.work(
                which=self.die.randint(0, 9), said=said, limit=self.die.randint(0, 3), worker="w1"
            )
            self.leases += values(leased)

    def report(self) -> None:
        if self.machine.held():
            self.machine.report(
                which=self.die.randint(0, 9),
                outcome=self.die.choice(OUTCOMES),
                retryable=self.die.random() < 0.5,
                twice=self.die.random() < 0.5,
                uncertain=self.die.random() < 0.5,
            )

    def complete_in_a_transaction(self) -> None:
        if self.leases:
            self.machine.complete_in_a_transaction(
                which=self.die.randint(0, 9),
                dead=self.die.choice(self.leases),
                commits=self.die.random() < 0.5,
            )

    def report_any(self) -> None:
        if self.leases:
            again, forge = self.die.random() < 0.5, self.die.random() < 0.3
            self.machine.report_any(chosen=self.some(4), again=again, forge=forge)

    def renew(self) -> None:
        if self.leases:
            seconds = self.die.choice([0.001, LEASE_SECONDS, 3 * LEASE_SECONDS])
            self.machine.renew(chosen=[lease for lease, _ in self.some(4)], seconds=seconds)

    def apply(self) -> None:
        retry = Retried(more_retries=self.die.randint(0, 2), actor="ada")
        event = self.die.choice([Cancelled(actor="ada"), retry, retry])
        self.machine.apply(checked_job=self.die.choice(self.checked_jobs), event=event)

    def seldom(self) -> None:
        what = self.die.choice(["reopen", "cancel", "retry", "retry", "prune", "prune"])
        self.machine.seldom(what=what, age=self.die.choice([0.0, 0.001, 3600.0]))

    def let_time_pass(self) -> None:
        sweep = self.die.random() < 0.5
        self.machine.let_time_pass(seconds=self.die.choice(STEPS), sweep=sweep)

    def go_to_a_boundary(self) -> None:
        off, sweep = self.die.choice([-0.001, 0.0, 0.001]), self.die.random() < 0.5
        self.machine.go_to_a_boundary(which=self.die.randint(0, 9), off=off, sweep=sweep)


def values(results: Any) -> list[Any]:
    """What a rule put into its bundle."""
    assert isinstance(results, MultipleResults)
    return list(results.values)
