"""The triggers count what jobs wait for, whoever ends a job: here it is an operator with SQL."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from tests.support.graphs import ENDINGS, Graph, counted
from tests.support.raw_sql import RawSql, Refused
from tests.support.store import StoreHarness

MEETS = ("completed", "settled", "failed", "past")
BACK = {"skipped": "restored", "gave up": "retried"}


@pytest.fixture
def graph(unaudited_harness: StoreHarness) -> Graph:
    return Graph(unaudited_harness.sql)


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_ending_meets_or_misses_and_is_taken_back(graph: Graph, ending: str) -> None:
    """Jobs 1 and 2 are parents; the children 11 to 14 wait for both, and 21 to 24 for 1 alone."""
    graph.add(
        1,
        need=1 if ending == "skipped" else None,
        followed=8,
        max_retries=1 if ending == "failed for good" else 10,
        start_by="{now}" if ending == "expired" else "NULL",
    )
    graph.add(2, followed=4)
    graph.add(11, 14, need=2)
    graph.add(21, 24, need=1)
    for n, meets in enumerate(MEETS, 1):
        for parent, child in ((1, 10 + n), (2, 10 + n), (1, 20 + n)):
            graph.link(range(parent, parent + 1), range(child, child + 1), meets)
    graph.end(ending, 1)
    rests = "again" not in ending
    good = ("completed", "settled") if ending == "completed" else ("settled", "failed")
    doomed = []
    for n, meets in enumerate(MEETS, 1):
        if meets == "past" or not rests:
            states = [("waiting", 2, 0), ("waiting", 1, 0)]
        elif meets in good:
            states = [("waiting", 1, 0), ("pending", 0, 0)]
        else:
            states = [("waiting", 2, -1), ("waiting", 1, -1)]
            doomed += [10 + n, 20 + n]
        assert [graph.state(10 + n), graph.state(20 + n)] == states, meets
    assert graph.numbers("revisit", "job_id") == sorted(doomed)
    if ending not in BACK:
        return
    graph.step("skipped", 21)
    graph.raw.run("DELETE FROM {revisit}")
    assert graph.numbers("revisit", "job_id") == [11]  # the other one is no longer doomed
    graph.step(BACK[ending], 1)
    assert [graph.state(n) for n in (11, 12, 13, 14)] == [("waiting", 2, 0)] * 4
    assert graph.numbers("revisit", "job_id") == [11, 21]  # one can be restored


def test_the_ending_is_on_record_before_what_follows(
    graph: Graph, unaudited_harness: StoreHarness
) -> None:
    graph.add(1, followed=1)
    graph.add(2, need=1)
    graph.link(range(1, 2), range(2, 3))
    unaudited_harness.clock.advance(1)
    graph.end("completed", 1)
    events = graph.raw.run("SELECT event, actor FROM {transition} ORDER BY seq")[2:]
    assert [event for event, _ in events] == ["claimed", "completed", "unblocked"]
    assert events[-1][1] == "store"
    late = graph.raw.value("SELECT count(*) FROM {job} WHERE run_at > created_at")
    assert late == 1  # it is due from its release on


@pytest.mark.parametrize("seed", range(3))
def test_any_history_counts_as_its_last_state_says(graph: Graph, seed: int) -> None:
    """Eight parents end and come back in any order, thirty children count them."""
    chance = random.Random(seed)
    children: dict[int, tuple[dict[int, str], int]] = {}
    graph.add(1, 8, need=1, followed=30)
    for child in range(11, 41):
        edges = {p: chance.choice(MEETS[:3]) for p in chance.sample(range(1, 9), 6)}
        children[child] = edges, chance.randint(1, 6)
        graph.add(child, need=children[child][1], spare=6 - children[child][1])
        for parent, meets in edges.items():
            graph.link(range(parent, parent + 1), range(child, child + 1), meets)
    ended: dict[int, str | None] = {}
    waiting = set(children)
    for _ in range(24):
        parent = chance.randint(1, 8)
        if ended.get(parent):
            graph.step("restored", parent)
            ended[parent] = None
        else:
            graph.step("skipped", parent)
            ended[parent] = "cancelled"
        rows = graph.raw.run("SELECT id, status, need, spare FROM {job}")
        states = {int(str(id)[-12:], 16): tuple(state) for id, *state in rows}
        for child in sorted(waiting):
            edges, needs = children[child]
            need, spare = counted([(m, ended.get(p)) for p, m in edges.items()], needs)
            assert states[child] == ("pending" if need < 1 else "waiting", need, spare)
            waiting -= {child} if need < 1 else set()
        doomed = {child for child in waiting if states[child][2] < 0}
        assert doomed <= set(graph.numbers("revisit", "job_id"))


@pytest.mark.parametrize("followers", [1, 1_000, 1_001, 2_000, 10_000])
def test_followers_are_counted_a_thousand_at_a_time(graph: Graph, followers: int) -> None:
    graph.add(1, followed=followers)
    graph.add(11, 10 + followers, need=1)
    graph.link(range(1, 2), range(11, 11 + followers))
    graph.end("completed", 1)
    pending = "SELECT count(*) FROM {job} WHERE status = 'pending'"
    assert graph.raw.value(pending) == min(followers, 1_000)
    assert graph.count_on() in (followers // 1_000, (followers - 1) // 1_000)
    assert graph.raw.value(pending) == followers
    assert graph.raw.value("SELECT count(*) FROM {job} WHERE need <> 0") == 0


def test_what_is_overdue_is_taken_back_as_far_as_it_was_counted(graph: Graph) -> None:
    graph.add(1, 2, followed=2_500)
    graph.add(11, 2_510, need=2)
    for parent in (1, 2):
        graph.link(range(parent, parent + 1), range(11, 2_511), "settled")
    needs = "SELECT need, count(*) FROM {job} WHERE status = 'waiting' GROUP BY need ORDER BY need"
    graph.end("gave up", 1)
    assert graph.raw.run(needs) == [(1, 1_000), (2, 1_500)]
    graph.step("retried", 1)
    assert graph.raw.run(needs) == [(2, 2_500)]
    assert graph.numbers("overdue", "parent") == []
    graph.end("gave up", 1)
    graph.count_on()
    assert graph.raw.run(needs) == [(1, 2_500)]
    graph.step("retried", 1)
    assert graph.raw.run(needs) == [(2, 2_500)]
    graph.end("gave up", 1, 2)
    graph.count_on()
    assert graph.raw.run("SELECT status, need FROM {job} WHERE need < 2 GROUP BY status, need") == [
        ("pending", 0)
    ]


def test_a_statement_counts_for_some_followers_and_leaves_others(graph: Graph) -> None:
    """Twelve parents with 900 followers each: on PostgreSQL eleven are counted at once."""
    graph.add(1, 12, followed=900)
    graph.add(101, 1_000, need=12)
    for parent in range(1, 13):
        graph.link(range(parent, parent + 1), range(101, 1_001))
    graph.end("completed", 1, 12)
    assert graph.numbers("overdue", "parent") == ([12] if graph.raw.engine == "postgres" else [])
    graph.count_on()
    assert graph.raw.value("SELECT count(*) FROM {job} WHERE status = 'pending'") == 900


@pytest.mark.parametrize(
    ("parents", "needs"),
    [(256, "all"), (257, "all"), (257, "any"), (1_001, "any"), (10_000, "all")],
)
def test_many_parents_of_one_job(graph: Graph, parents: int, needs: str) -> None:
    """On PostgreSQL they are counted in rows of their own above 256."""
    child, last = parents + 1, parents
    graph.add(1, parents, followed=1)
    spare = 0 if needs == "all" else parents - 1
    graph.add(child, need=parents - spare, spare=spare)
    graph.link(range(1, child), range(child, child + 1))
    if parents > 256:
        graph.gate(child, range(1, child), needs)
    others, last_one = ("completed", "gave up") if needs == "all" else ("gave up", "completed")
    for first in range(1, parents, 2_000):
        graph.end(others, first, min(first + 1_999, parents - 1))
    assert graph.state(child)[0] == "waiting"
    assert graph.numbers("revisit", "job_id") == []
    graph.end(last_one, last)
    if needs == "all":
        assert graph.numbers("revisit", "job_id") == [child]
        graph.step("retried", last)
        assert graph.state(child)[1:] == (1, 0)
        graph.end("completed", last)
    assert graph.state(child)[:2] == ("pending", 0)


@pytest.mark.parametrize(("needs", "meets"), [("all", "settled"), ("any", "failed")])
def test_parents_that_complete_one_by_one(graph: Graph, needs: str, meets: str) -> None:
    """Each is counted in its gate, and on the child if that opens the gate or closes it.

    Another child waits for the first parent alone, and a dependency on a parent of its own is past.
    """
    parents, child = range(1, 41), 41
    graph.add(1, followed=2)
    graph.add(2, 40, followed=1)
    graph.add(42, need=1)
    graph.link(range(1, 2), range(42, 43), "settled")
    graph.add(child, need=40 if needs == "all" else 1, spare=0 if needs == "all" else 39)
    graph.link(parents, range(child, child + 1), meets)
    graph.gate(child, parents, needs)
    graph.add(43, followed=1)
    graph.link(range(43, 44), range(child, child + 1), "past")
    if graph.raw.engine == "postgres":
        graph.raw.run(f"UPDATE {{dependency}} SET gate = 0 WHERE parent = {graph.id(43)}")
    graph.end("completed", 43)
    left = {gate: 3 if gate < 8 else 2 for gate in range(16)}
    order = random.Random(needs).sample(parents, 40)
    graph.step("claimed", 1, 40)
    for ended, parent in enumerate(order, 1):
        graph.step("completed", parent)
        left[(parent - 1) % 16] -= 1
        missed = sum(not n for n in left.values())
        if graph.raw.engine == "sqlite":
            missed = ended
        else:
            rows = graph.raw.run("SELECT need, spare FROM {gate} ORDER BY gate")
            assert [tuple(row) for row in rows] == [
                (n, 0) if needs == "all" else (1, n - 1) for n in left.values()
            ]
        total = 40 if graph.raw.engine == "sqlite" else 16
        state = (total - missed, 0) if needs == "all" else (1, total - 1 - missed)
        released = needs == "all" and ended == 40
        assert graph.state(child) == ("pending" if released else "waiting", *state)
        assert graph.numbers("revisit", "job_id") == [child] * (needs == "any" and ended == 40)
    assert graph.state(42) == ("pending", 0, 0)


def test_parents_of_a_gate_come_back(graph: Graph) -> None:
    """The gates of `any` are closed by the last that fails, and open again."""
    child = 301
    graph.add(1, 300, need=1, followed=1)
    graph.add(child, need=1, spare=299)
    graph.link(range(1, child), range(child, child + 1))
    graph.gate(child, range(1, child), "any")
    spare = graph.state(child)[2]
    for _ in range(2):
        graph.step("skipped", 1, 150)
        graph.step("skipped", 151, 300)
        assert (graph.state(child)[2] or 0) < 0
        graph.step("restored", 1, 299)
        assert graph.state(child)[0] == "waiting"
        graph.step("restored", 300)
        assert graph.state(child) == ("waiting", 1, spare)


def test_a_gate_that_was_full_opens_again(graph: Graph) -> None:
    child = 301
    graph.add(1, 300, need=1, followed=1)
    graph.add(child, need=300)
    graph.link(range(1, child), range(child, child + 1), "settled")
    graph.gate(child, range(1, child))
    for _ in range(2):
        graph.step("skipped", 1, 299)
        assert graph.state(child) == ("waiting", 1, 0)
        graph.step("restored", 1)
        assert graph.state(child) == ("waiting", 2, 0)
        graph.step("restored", 2, 299)
    graph.step("skipped", 1, 300)
    assert graph.state(child) == ("pending", 0, 0)


def test_a_workflow_is_open_again_when_a_job_of_it_is(graph: Graph) -> None:
    raw, flow = graph.raw, graph.id(9_000)
    with pytest.raises(Refused, match="workflow does not exist"):
        graph.add(1, workflow=flow)
    raw.run(f"INSERT INTO {{workflow}} (id, created_at, created_by) VALUES ({flow}, {{now}}, 'x')")

    def finished(by: int) -> bool:
        raw.run(f"UPDATE {{workflow}} SET finished_at = {{now}}, settled_to = {graph.id(by)}")
        return True

    def is_open() -> bool:
        where = "finished_at IS NULL AND settled_to IS NULL"
        return bool(raw.value(f"SELECT count(*) FROM {{workflow}} WHERE {where}"))

    graph.add(1, 2, workflow=flow)
    finished(1)
    graph.end("tried again at once", 1)
    graph.end("gave up", 2)
    assert not is_open()
    graph.step("retried", 2)
    assert is_open()
    finished(2)
    graph.add(3, workflow=flow, need=1)
    assert is_open()
    graph.step("skipped", 3)
    finished(3)
    graph.step("restored", 3)
    assert is_open()
    raw.run(f"UPDATE {{workflow}} SET settled_to = {graph.id(2)}")  # it was looked at only
    graph.add(4, workflow=flow)
    assert is_open()


@pytest.mark.parametrize("bad", [1, 2])
def test_a_count_is_no_cover_for_another_change(graph: Graph, bad: int) -> None:
    """One statement counts for two jobs, and gives one of them an attempt."""
    graph.add(1, 2, need=2)
    attempts = f"CASE WHEN id = {graph.id(bad)} THEN 1 ELSE 0 END"
    with pytest.raises(Refused):
        graph.raw.run(f"UPDATE {{job}} SET need = need - 1, attempts = {attempts}")
    assert graph.state(1) == graph.state(2) == ("waiting", 2, 0)


def test_what_others_wait_for_is_kept(graph: Graph, unaudited_harness: StoreHarness) -> None:
    raw, flow = graph.raw, graph.id(9_000)
    raw.run(f"INSERT INTO {{workflow}} (id, created_at, created_by) VALUES ({flow}, {{now}}, 'x')")
    graph.add(1, 2, followed=1)
    graph.add(3, workflow=flow)
    graph.add(4, need=2)
    graph.link(range(1, 3), range(4, 5))
    graph.end("completed", 1, 3)
    store = unaudited_harness.store

    def left() -> list[int]:
        unaudited_harness.clock.advance(200_000)
        store.prune({"completed": unaudited_harness.clock.now - timedelta(1)}).result()
        return graph.numbers("job", "id")

    with pytest.raises(Refused, match="a job that depends on this one is not settled"):
        raw.run(f"DELETE FROM {{job}} WHERE id = {graph.id(1)}")
    assert left() == [1, 2, 3, 4]
    graph.end("completed", 4)
    left()
    assert left() == [3]
    assert graph.numbers("dependency", "child") == []


def test_nobody_writes_what_the_triggers_keep(graph: Graph) -> None:
    graph.add(1)
    if graph.raw.engine == "sqlite":
        refused = ["UPDATE {overdue} SET after = parent"]
        graph.raw.run(f"INSERT INTO {{overdue}} VALUES ({graph.id(1)}, 'failed', '')")
    else:
        refused = [
            f"INSERT INTO {{revisit}} VALUES ({graph.id(1)})",
            "UPDATE {revisit} SET job_id = job_id",
        ]
    for statement in refused:
        with pytest.raises(Refused, match="only changes of jobs change this table"):
            graph.raw.run(statement)


def test_of_a_settled_job_only_the_followers_may_change(harness: StoreHarness) -> None:
    graph = Graph(harness.sql)
    graph.add(1)
    graph.end("gave up", 1)
    raw: RawSql = harness.sql
    where = f"WHERE id = {graph.id(1)}"
    raw.run(f"UPDATE {{job}} SET followed = 3 {where}")
    for column in ("last_error", "actor", "worker", "reason"):
        with pytest.raises(Refused, match="illegal transition"):
            raw.run(f"UPDATE {{job}} SET followed = 4, {column} = 'y' {where}")
    for column in ("finished_at", "started_at"):
        with pytest.raises(Refused, match="illegal transition"):
            raw.run(f"UPDATE {{job}} SET followed = 4, {column} = {{later}} {where}")
    assert raw.value("SELECT followed FROM {job}") == 3


def test_a_job_that_was_claimed_waits_for_no_job(graph: Graph) -> None:
    """An old dependency must not end a wait for a signal."""
    graph.add(1, 3, followed=1)
    graph.add(4, need=1, spare=2)
    graph.link(range(1, 3), range(4, 5))
    graph.link(range(3, 4), range(4, 5), "failed")
    graph.end("completed", 1)
    graph.step("claimed", 4)
    graph.step("suspended", 4)
    for parent in (2, 3):
        graph.end("completed", parent)
        assert graph.state(4) == ("waiting", 1, 0)


def test_a_follower_that_has_ended_is_counted_no_more(graph: Graph) -> None:
    graph.add(1, 3, followed=1)
    graph.add(4, need=3)
    graph.link(range(1, 4), range(4, 5))
    graph.end("completed", 1)
    assert graph.state(4) == ("waiting", 2, 0)
    graph.step("cancelled", 4)
    graph.end("completed", 2)
    assert graph.state(4) == ("cancelled", 2, 0)
