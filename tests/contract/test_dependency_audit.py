"""`violations` finds what is wrong with jobs that wait, with steps and with workflows.

Rows are written by hand where no guard looks at them, or behind the guards.
"""

from __future__ import annotations

import re

import pytest

from tenure.store import audit
from tenure.values.ids import new_ids
from tests.support.store import StoreHarness

COUNTED = audit.COUNTED
SKIPPED = audit.SKIPPED
CYCLE = "no jobs wait for each other"
FOLLOWED = "a job that others wait for counts them"
STEP = "a step is of an attempt of its job"
SUSPENDED = "a suspended job waits for what has not come"
WORKFLOW = "a finished workflow has no unsettled job"

JOB = (
    "INSERT INTO {job} (id, type, run_at, created_at, status, need, spare, needs, followed)"
    " VALUES (?, 'node', {now}, {now}, ?, ?, ?, ?, ?)"
)
EDGE = "INSERT INTO {dependency} (parent, child, meets) VALUES (?, ?, ?)"
WORK = "INSERT INTO {workflow} (id, created_at, created_by) VALUES (w, {now}, 'me')"


class Graph:
    """Jobs a and b (pending), c (waits for both), d (for c), by their letters."""

    def __init__(self, harness: StoreHarness) -> None:
        self.sql = harness.sql
        self.ids = dict(zip("abcdwxyz", new_ids(8), strict=True))
        self.job("a", followed=1)
        self.job("b", followed=1)
        self.job("c", 2, 0, followed=1)
        self.job("d", 1, 0)
        for parent, child in ("ac", "bc", "cd"):
            self.edge(parent, child)

    def job(
        self,
        name: str,
        need: int | None = None,
        spare: int | None = None,
        needs: int | None = None,
        followed: int | None = None,
    ) -> None:
        status = "waiting" if need else "pending"
        self.sql.run(JOB, self.ids[name], status, need, spare, needs, followed)

    def edge(self, parent: str, child: str, meets: str = "completed") -> None:
        self.sql.run(EDGE, self.ids[parent], self.ids[child], meets)

    def run(self, statements: str) -> None:
        """Run statements, in which jobs and the workflow w are named by their letters."""
        for statement in statements.split(";"):
            text = re.sub(r"\?([a-z])$", r"\1", statement.replace("NEW", WORK))
            self.sql.run(re.sub(r"(?<![\w{.'])[a-z](?![\w}.'])", self._id, text))
            assert self.sql.changed >= 1

    def _id(self, letter: re.Match[str]) -> str:
        return f"'{self.ids[letter[0]]}'"


def found(harness: StoreHarness) -> set[tuple[str, str]]:
    seen = {(name, job_id) for name, job_id, _ in harness.store.read.violations(1000)}
    return {(name, job_id) for name, job_id in seen if name in OWN}


END = (
    "UPDATE {job} SET status = '%s', event = '%s', attempts = 1, finished_at = {now},"
    " last_error = 'x' WHERE id = ?"
)
SKIP = "UPDATE {job} SET status = 'cancelled', event = 'skipped', spare = -1, finished_at = {now}"
DAMAGE: list[tuple[str, set[tuple[str, str]]]] = [
    # what is counted
    ("UPDATE {job} SET need = 1 WHERE id = c", {(COUNTED, "c")}),
    ("UPDATE {job} SET spare = 1 WHERE id = c", {(COUNTED, "c")}),
    ("UPDATE {job} SET needs = 1 WHERE id = c", {(COUNTED, "c")}),
    (END % ("completed", "completed") + "a", {(COUNTED, "c")}),
    (END % ("cancelled", "cancelled") + "a", {(COUNTED, "c")}),
    (END % ("failed", "gave_up") + "a", {(COUNTED, "c")}),
    (END % ("failed", "failed") + "a", set()),  # it will be tried again
    ("DELETE FROM {job} WHERE id = a", {(COUNTED, "c")}),
    ("UPDATE {dependency} SET meets = 'past' WHERE child = d", set()),  # that is by hand
    ("UPDATE {dependency} SET meets = 'past' WHERE parent = a", {(COUNTED, "c")}),
    ("INSERT INTO {overdue} VALUES (a, 'completed', a)", {(COUNTED, "a")}),
    (
        END % ("completed", "completed") + "a; INSERT INTO {overdue} VALUES (a, 'failed', c)",
        {(COUNTED, "a"), (COUNTED, "c")},
    ),
    (
        END % ("completed", "completed") + "a; INSERT INTO {overdue} VALUES (a, 'completed', b)",
        set(),
    ),
    (
        END % ("completed", "completed") + "a; INSERT INTO {overdue} VALUES (a, 'completed', c)",
        {(COUNTED, "c")},
    ),
    *(
        (
            f"UPDATE {{dependency}} SET meets = '{meets}' WHERE parent = a; {END % ended}a;"
            " UPDATE {job} SET need = 1 WHERE id = c",
            set[tuple[str, str]](),
        )
        for meets, ended in (
            ("settled", ("completed", "completed")),
            ("settled", ("cancelled", "skipped")),
            ("failed", ("failed", "gave_up")),
            ("failed", ("cancelled", "cancelled")),
        )
    ),
    # what is skipped
    ("UPDATE {job} SET spare = -1 WHERE id = c", {(COUNTED, "c"), (SKIPPED, "c")}),
    (
        END % ("cancelled", "cancelled") + "a; UPDATE {job} SET spare = -1 WHERE id = c",
        {(SKIPPED, "c")},
    ),
    (
        END % ("cancelled", "cancelled") + "a; UPDATE {job} SET spare = -1 WHERE id = c;"
        " INSERT INTO {revisit} VALUES (c)",
        set(),
    ),
    (f"{SKIP} WHERE id = d", {(SKIPPED, "d")}),
    (f"{END % ('cancelled', 'cancelled')}a; {SKIP} WHERE id = c", {(COUNTED, "d")}),
    (f"{SKIP} WHERE id = d; INSERT INTO {{revisit}} VALUES (d)", set()),
    # who follows
    ("UPDATE {job} SET followed = NULL WHERE id = a", {(FOLLOWED, "a")}),
    ("UPDATE {job} SET followed = 7 WHERE id = a", set()),  # some of them are deleted
    ("INSERT INTO {dependency} (parent, child) VALUES (a, d)", {(FOLLOWED, "a"), (COUNTED, "d")}),
    # circles
    (
        "INSERT INTO {dependency} (parent, child) VALUES (d, c);"
        " UPDATE {job} SET need = 3, followed = 1 WHERE id = c;"
        " UPDATE {job} SET followed = 1 WHERE id = d",
        {(CYCLE, "d")},
    ),
    (
        "INSERT INTO {dependency} (parent, child) VALUES (d, a);"
        " UPDATE {job} SET need = 1, spare = 0, status = 'waiting' WHERE id = a;"
        " UPDATE {job} SET followed = 1 WHERE id = d",
        {(CYCLE, "d")},
    ),
    (  # against the order of the ids, and no circle
        "INSERT INTO {dependency} (parent, child) VALUES (d, b);"
        " UPDATE {job} SET need = 1, spare = 0, status = 'waiting' WHERE id = b;"
        " UPDATE {dependency} SET meets = 'past' WHERE parent = b;"
        " UPDATE {job} SET need = 1 WHERE id = c; UPDATE {job} SET followed = 1 WHERE id = d",
        set(),
    ),
    # workflows
    ("NEW; UPDATE {job} SET workflow = w WHERE id = a", set()),
    ("UPDATE {job} SET workflow = w WHERE id = a", {(WORKFLOW, "a")}),
    (
        "NEW; UPDATE {workflow} SET finished_at = {now} WHERE id = w;"
        " UPDATE {job} SET workflow = w WHERE id = d",
        {(WORKFLOW, "d")},
    ),
    (
        "NEW; UPDATE {workflow} SET settled_to = b WHERE id = w;"
        " UPDATE {job} SET workflow = w WHERE id IN (a, b, c)",
        {(WORKFLOW, "a"), (WORKFLOW, "b")},
    ),
]
OWN = {COUNTED, SKIPPED, FOLLOWED, CYCLE, STEP, SUSPENDED, WORKFLOW}


def test_it_finds_what_is_wrong(unaudited_harness: StoreHarness) -> None:
    """All damages at once, each to a graph of its own: nothing is found in the others."""
    harness = unaudited_harness
    graphs = [Graph(harness) for _ in DAMAGE]
    assert found(harness) == set()
    harness.sql.drop_triggers()
    harness.sql.drop_checks()
    for graph, (statements, _) in zip(graphs, DAMAGE, strict=True):
        graph.run(statements)
    whose = {graph.ids[name]: (n, name) for n, graph in enumerate(graphs) for name in graph.ids}
    expected = {(name, n, letter) for n, (_, all) in enumerate(DAMAGE) for name, letter in all}
    assert {(name, *whose[id]) for name, id in found(harness)} == expected


def test_any_and_some(unaudited_harness: StoreHarness) -> None:
    """The same sums with `needs`, as the store keeps them while parents end."""
    graph = Graph(unaudited_harness)
    graph.job("x", 1, 1, needs=1)
    graph.job("y", 2, 0, needs=2)
    graph.edge("a", "x", "failed")
    graph.edge("b", "x", "settled")
    graph.edge("c", "y", "settled")
    graph.edge("d", "y")
    graph.sql.run("UPDATE {job} SET followed = 2")
    assert found(unaudited_harness) == set()
    graph.sql.drop_triggers()
    graph.sql.drop_checks()
    graph.run(END % ("completed", "completed") + "a")  # x has one ending less to spare
    assert found(unaudited_harness) == {(COUNTED, graph.ids[name]) for name in "cx"}
    graph.run("UPDATE {job} SET spare = 0 WHERE id = x; UPDATE {job} SET need = 1 WHERE id = c")
    assert found(unaudited_harness) == set()


GATE_DAMAGE = (
    "UPDATE {gate} SET need = 1 WHERE gate = 0 AND child = ?",
    "UPDATE {gate} SET spare = 1 WHERE gate = 15 AND child = ?",
    "DELETE FROM {gate} WHERE gate = 3 AND child = ?",
    "UPDATE {job} SET need = 15 WHERE id = ?",
    "UPDATE {job} SET spare = -1 WHERE id = ?",
)


@pytest.mark.parametrize(
    "database_url", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)
def test_gates(unaudited_harness: StoreHarness) -> None:
    sql = unaudited_harness.sql
    parents, children = new_ids(32), new_ids(len(GATE_DAMAGE) + 1)
    for id in parents:
        sql.run(JOB, id, "pending", None, None, None, len(children))
    for child in children:
        sql.run(JOB, child, "waiting", 16, 0, None, None)
        for number, id in enumerate(parents):
            edge = "INSERT INTO {dependency} (parent, child, gate) VALUES (?, ?, ?)"
            sql.run(edge, id, child, number % 16)
        for gate in range(16):
            sql.run("INSERT INTO {gate} VALUES (?, ?, 2, 0)", child, gate)
    assert found(unaudited_harness) == set()
    sql.drop_triggers()
    for statement, child in zip(GATE_DAMAGE, children, strict=False):
        sql.run(statement, child)
    broken = {id for name, id in found(unaudited_harness) if name == COUNTED}
    assert broken == {*children[:-1]}
    sql.drop_checks()
    end = END % ("cancelled", "cancelled")
    sql.run(end, parents[3])
    sql.run("UPDATE {gate} SET spare = -1 WHERE gate = 3")
    assert (COUNTED, children[-1]) in found(unaudited_harness)
    sql.run("UPDATE {job} SET spare = -1 WHERE id = ?", children[-1])
    assert (COUNTED, children[-1]) not in found(unaudited_harness)


def test_steps_and_signals(unaudited_harness: StoreHarness) -> None:
    harness, sql = unaudited_harness, unaudited_harness.sql
    ran, idle = harness.take().id, harness.add().id
    step = "INSERT INTO {step} (job_id, name, number, token, at) VALUES (?, ?, 1, ?, {now})"
    sql.run(step, ran, "one", 1)
    assert found(harness) == set()
    sql.drop_triggers()
    sql.drop_checks()
    sql.run(step, ran, "two", 2)
    assert found(harness) == {(STEP, ran)}
    sql.run("DELETE FROM {step}")
    sql.run(step, idle, "one", 0)
    assert found(harness) == {(STEP, idle)}
    sql.run("DELETE FROM {step}")
    sql.run("INSERT INTO {wait} (job_id, name, number) VALUES (?, 'paid', 1)", idle)
    assert found(harness) == set()  # its job was released by hand
    sql.run("UPDATE {job} SET status = 'waiting', need = 1 WHERE id = ?", ran)
    assert found(harness) == {(SUSPENDED, ran)}
    sql.run("INSERT INTO {wait} (job_id, name, number) VALUES (?, 'paid', 1)", ran)
    assert found(harness) == set()
    sql.run("INSERT INTO {signal} (job_id, name, number, at) VALUES (?, 'paid', 2, {now})", ran)
    assert found(harness) == set()
    sql.run("UPDATE {signal} SET number = 1")
    assert found(harness) == {(SUSPENDED, ran)}


def test_there_is_a_case_for_every_question() -> None:
    questions = (*audit.ON_SQLITE, *audit.ON_POSTGRES)
    assert {name for each in questions for name in each.invariants} == OWN
    assert {name for _, broken in DAMAGE for name, _ in broken} | {STEP, SUSPENDED} == OWN
    assert set(audit.INVARIANTS) >= OWN
