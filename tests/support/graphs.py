"""Jobs and their dependencies by plain SQL, as many as a test needs, and their ends by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.support.raw_sql import RawSql

ENDINGS = {
    "completed": ["claimed", "completed"],
    "gave up": ["claimed", "gave up"],
    "failed for good": ["claimed", "failed"],
    "cancelled": ["cancelled"],
    "skipped": ["skipped"],
    "expired": ["expired"],
    "failed, to be tried again": ["claimed", "failed"],
    "tried again at once": ["claimed", "failed", "retried"],
}
REST = "lease_id = NULL, lease_expires_at = NULL, finished_at = {now}"
CLAIMED = (
    "status = 'processing', event = 'claimed', attempts = attempts + 1, token = token + 1,"
    " started_at = {now}, worker = 'w', lease_id = {new_lease}, lease_expires_at = {later}"
)
STEPS = {
    "claimed": CLAIMED,
    "completed": f"status = 'completed', event = 'completed', {REST}",
    "gave up": f"status = 'failed', event = 'gave_up', last_error = 'x', {REST}",
    "failed": f"status = 'failed', event = 'failed', last_error = 'x', {REST}",
    "cancelled": f"status = 'cancelled', event = 'cancelled', {REST}",
    "skipped": f"status = 'cancelled', event = 'skipped', spare = -1, {REST}",
    "expired": f"status = 'cancelled', event = 'expired', {REST}",
    "suspended": "status = 'waiting', event = 'suspended', need = 1, spare = 0,"
    " attempts = attempts - 1, snoozes = coalesce(snoozes, 0) + 1,"
    " lease_id = NULL, lease_expires_at = NULL",
    "retried": "status = 'pending', event = 'retried', finished_at = NULL",
    "restored": "status = 'waiting', event = 'restored', finished_at = NULL, need = 1, spare = 0",
}


class Graph:
    """Jobs by number, in the order of their ids, which is that of parents before children."""

    def __init__(self, raw: RawSql) -> None:
        self.raw = raw

    def id(self, number: str | int) -> str:
        """The SQL of the id of a job."""
        if self.raw.engine == "sqlite":
            return f"printf('0190163d-8694-739b-aea5-%012x', {number})"
        return f"('0190163d-8694-739b-aea5-' || lpad(to_hex({number}), 12, '0'))::uuid"

    def _numbers(self, first: int, last: int) -> str:
        return (
            f"WITH RECURSIVE one (n) AS (SELECT {first} UNION ALL"
            f" SELECT n + 1 FROM one WHERE n < {last})"
        )

    def add(
        self,
        first: int,
        last: int | None = None,
        *,
        need: int | None = None,
        spare: int = 0,
        followed: int | None = None,
        workflow: str | None = None,
        max_retries: int = 10,
        start_by: str = "NULL",
    ) -> None:
        """Add the jobs `first` to `last`: waiting, if they need something."""
        last = first if last is None else last
        counts = "NULL, NULL" if need is None else f"{need}, {spare}"
        self.raw.run(
            "INSERT INTO {job} (id, type, run_at, created_at, status, need, spare, followed,"
            f" workflow, max_retries, start_by) {self._numbers(first, last)}"
            f" SELECT {self.id('n')}, 'mail', {{now}}, {{now}},"
            f" '{'pending' if need is None else 'waiting'}', {counts}, {followed or 'NULL'},"
            f" {workflow or 'NULL'}, {max_retries}, {start_by} FROM one"
        )

    def link(self, parents: range, children: range, meets: str = "completed") -> None:
        """Let each of the children wait for each of the parents, or the only one for all."""
        for parent, child in (
            ("n", children.start) if len(children) == 1 else (parents.start, "n"),
        ):
            many = parents if len(children) == 1 else children
            self.raw.run(
                f"INSERT INTO {{dependency}} (parent, child, meets)"
                f" {self._numbers(many.start, many.stop - 1)}"
                f" SELECT {self.id(parent)}, {self.id(child)}, '{meets}' FROM one"
            )

    def gate(self, child: int, parents: Sequence[int], needs: str = "all") -> None:
        """Count the parents of a child in gates, on PostgreSQL."""
        if self.raw.engine == "sqlite":
            return
        gates = {parent: n % 16 + 16 * (n // 2048) for n, parent in enumerate(parents)}
        sizes = [list(gates.values()).count(gate) for gate in sorted(set(gates.values()))]
        for gate, size in enumerate(sizes):
            need, spare = (size, 0) if needs == "all" else (1, size - 1)
            self.raw.run(f"INSERT INTO {{gate}} VALUES ({self.id(child)}, {gate}, {need}, {spare})")
        first = min(parents)
        self.raw.run(
            "UPDATE {dependency} SET gate = t.gate FROM (SELECT n AS number,"
            f" mod(n - {first}, 16) + 16 * ((n - {first}) / 2048) AS gate"
            f" FROM generate_series({first}, {max(parents)}) AS s (n)) AS t"
            f" WHERE parent = {self.id('t.number')} AND child = {self.id(child)}"
        )
        need, spare = (len(sizes), 0) if needs == "all" else (1, len(sizes) - 1)
        self.raw.without_triggers(
            f"UPDATE {{job}} SET need = {need}, spare = {spare} WHERE id = {self.id(child)}"
        )

    def end(self, how: str, first: int, last: int | None = None) -> None:
        """Bring jobs to an end: one statement for each transition on the way."""
        for step in ENDINGS[how]:
            self.step(step, first, last)

    def step(self, step: str, first: int, last: int | None = None) -> None:
        """Take jobs through one transition, in one statement."""
        last = first if last is None else last
        self.raw.run(
            f"UPDATE {{job}} SET {STEPS[step]}"
            f" WHERE id BETWEEN {self.id(first)} AND {self.id(last)}"
        )

    def state(self, number: int) -> tuple[str, int | None, int | None]:
        """Status, need and spare of a job."""
        ((status, need, spare),) = self.raw.run(
            f"SELECT status, need, spare FROM {{job}} WHERE id = {self.id(number)}"
        )
        return status, need, spare

    def numbers(self, table: str, column: str, where: str = "true") -> list[int]:
        """The numbers of the jobs in a column of a table."""
        rows = self.raw.run(f"SELECT {column} FROM {{{table}}} WHERE {where} ORDER BY {column}")
        return [int(str(id)[-12:], 16) for (id,) in rows]

    def count_on(self) -> int:
        """Count for the followers that are overdue, until there are none; return the steps."""
        steps = 0
        while self.raw.run("SELECT 1 FROM {overdue} LIMIT 1"):
            steps += 1
            if self.raw.engine == "sqlite":
                self.raw.run(
                    "DELETE FROM {overdue} WHERE parent = (SELECT min(parent) FROM {overdue})"
                )
            else:
                self.raw.run("SELECT tenure.follow_on(1000)")
        return steps


def met(meets: str, ending: str) -> bool:
    """Whether an ending meets a dependency: the rule, written once more."""
    return meets == "settled" or (ending == "completed") is (meets == "completed")


def counted(edges: Iterable[tuple[str, str | None]], needs: int) -> tuple[int, int]:
    """Need and spare of a job with such edges (meets, the ending of the parent at rest)."""
    edges = list(edges)
    good = sum(ending is not None and met(meets, ending) for meets, ending in edges)
    bad = sum(ending is not None and not met(meets, ending) for meets, ending in edges)
    return needs - good, len(edges) - needs - bad
