"""What follows from the end of a job, where several sessions end jobs side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest

from tenure.store import transitions
from tenure.store.postgres.writer import Postgres
from tenure.store.tables import workflows
from tenure.values.ids import new_id
from tests.support.graphs import STEPS, Graph
from tests.support.raw_sql import NAMES, RawSql
from tests.support.waiting import wait_until
from tests.unit.postgres.connections import Connection, committed, in_thread


@pytest.fixture
def graph(url: str) -> Iterator[Graph]:
    sql = RawSql(url)
    yield Graph(sql)
    sql.close()


def step(graph: Graph, number: int, name: str) -> str:
    """The statement that takes a job through a transition."""
    text = f"UPDATE {{job}} SET {STEPS[name]} WHERE id = {graph.id(number)}"
    for placeholder, meaning in NAMES["postgres"].items():
        text = text.replace(placeholder, meaning)
    return text


@contextmanager
def while_another_waits(
    url: str, raw: Connection, first: str, second: str | Callable[[Postgres], object]
) -> Iterator[None]:
    """Run the first statement; what the body does while the second waits for it; then commit."""
    with psycopg.connect(url) as holder:
        holder.execute(first.encode())

        def act() -> None:
            if isinstance(second, str):
                with psycopg.connect(url, autocommit=True, application_name="second") as other:
                    other.execute(second.encode())
                return
            with closing(Postgres(f"{url}&application_name=second")) as db, committed(db):
                second(db)

        thread = in_thread(act)
        blocked = (
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'second'"
            " AND datname = current_database() AND wait_event_type = 'Lock'"
        )
        wait_until(lambda: raw.execute(blocked).fetchone() is not None, "the second to wait")
        yield
        holder.commit()
    thread.join(30)
    assert not thread.is_alive()


def nothing() -> None:
    pass


def test_the_last_two_parents_end_side_by_side(url: str, raw: Connection, graph: Graph) -> None:
    """Without a count in a row, each would see the other one still running."""
    graph.add(1, 2, followed=1)
    graph.add(3, need=2)
    graph.link(range(1, 3), range(3, 4))
    graph.step("claimed", 1, 2)
    with while_another_waits(url, raw, step(graph, 1, "completed"), step(graph, 2, "completed")):
        nothing()
    assert graph.state(3) == ("pending", 0, 0)


@pytest.mark.parametrize("first", [241, 256], ids=["of one gate", "of two gates"])
def test_the_last_parents_in_gates_end_side_by_side(
    url: str, raw: Connection, graph: Graph, first: int
) -> None:
    graph.add(1, 257, followed=1)
    graph.add(300, need=257)
    graph.link(range(1, 258), range(300, 301))
    graph.gate(300, range(1, 258))
    graph.step("claimed", 1, 257)
    for others in ((1, first - 1), (first + 1, 256)):
        graph.step("completed", *others)
    ends = step(graph, first, "completed"), step(graph, 257, "completed")
    with while_another_waits(url, raw, *ends):
        nothing()
    assert graph.state(300)[:2] == ("pending", 0)


@pytest.mark.parametrize("gated", [False, True])
def test_children_are_locked_in_the_order_of_their_ids(
    url: str, raw: Connection, graph: Graph, gated: bool
) -> None:
    """The first of forty is held; none of the others may be locked before it."""
    children = range(11, 51)
    graph.add(1, followed=40)
    graph.add(children.start, children.stop - 1, need=1)
    graph.link(range(1, 2), children)
    if gated:
        for child in children:
            graph.gate(child, [1])
    hold = f"SELECT FROM tenure.job WHERE id = {graph.id(11)} FOR UPDATE"
    with while_another_waits(url, raw, hold, step(graph, 1, "cancelled")):
        raw.execute(f"SELECT FROM tenure.job WHERE id > {graph.id(11)} FOR UPDATE NOWAIT".encode())
    assert graph.numbers("revisit", "job_id") == list(children)


def test_gates_are_locked_in_order(url: str, raw: Connection, graph: Graph) -> None:
    graph.add(1, followed=40)
    graph.add(11, 50, need=1)
    graph.link(range(1, 2), range(11, 51))
    for child in range(11, 51):
        graph.gate(child, [1])
    hold = f"SELECT FROM tenure.gate WHERE child = {graph.id(11)} FOR UPDATE"
    with while_another_waits(url, raw, hold, step(graph, 1, "cancelled")):
        raw.execute(
            f"SELECT FROM tenure.gate WHERE child > {graph.id(11)} FOR UPDATE NOWAIT".encode()
        )


def test_gates_are_locked_before_the_jobs_that_are_skipped(
    url: str, raw: Connection, graph: Graph
) -> None:
    """An ending that counts for the same job locks its gate first, so there was a deadlock."""
    graph.add(1, followed=1)
    graph.add(2, need=1, followed=1)
    graph.add(3, need=1)
    graph.link(range(1, 2), range(2, 3))
    graph.link(range(2, 3), range(3, 4))
    graph.gate(3, [2])
    graph.step("cancelled", 1)
    hold = f"SELECT FROM tenure.gate WHERE child = {graph.id(3)} FOR UPDATE"
    with while_another_waits(url, raw, hold, transitions.decide_some):
        raw.execute(f"SELECT FROM tenure.job WHERE id = {graph.id(3)} FOR UPDATE NOWAIT".encode())
    assert graph.numbers("revisit", "job_id") == [3]


def test_a_parent_that_comes_back_sees_who_is_being_skipped(
    url: str, raw: Connection, graph: Graph
) -> None:
    graph.add(1, followed=1)
    graph.add(2, need=1)
    graph.link(range(1, 2), range(2, 3))
    graph.end("gave up", 1)
    with while_another_waits(url, raw, step(graph, 2, "skipped"), step(graph, 1, "retried")):
        raw.execute(b"DELETE FROM tenure.revisit")  # the sweep is done with it
    assert graph.numbers("revisit", "job_id") == [2]


def test_a_parent_ends_while_its_follower_is_restored(
    url: str, raw: Connection, graph: Graph
) -> None:
    graph.add(1, followed=1)
    graph.add(2, need=1)
    graph.link(range(1, 2), range(2, 3))
    graph.step("skipped", 2)
    with while_another_waits(url, raw, step(graph, 2, "restored"), step(graph, 1, "cancelled")):
        nothing()
    assert graph.state(2) == ("waiting", 1, -1)


def test_a_parent_comes_back_while_its_followers_are_counted(
    url: str, raw: Connection, graph: Graph
) -> None:
    graph.add(1, followed=2_500)
    graph.add(11, 2_510, need=2)
    graph.link(range(1, 2), range(11, 2_511), "settled")
    graph.end("gave up", 1)
    with while_another_waits(url, raw, "SELECT tenure.follow_on(1000)", step(graph, 1, "retried")):
        nothing()
    needs = "SELECT need, count(*) FROM {job} WHERE need IS NOT NULL GROUP BY need"
    assert graph.raw.run(needs) == [(2, 2_500)]
    assert graph.numbers("overdue", "parent") == []


def test_a_workflow_is_finished_while_a_job_of_it_comes_back(
    url: str, raw: Connection, graph: Graph
) -> None:
    flow = graph.id(9_000)
    graph.raw.run(
        f"INSERT INTO {{workflow}} (id, created_at, created_by) VALUES ({flow}, {{now}}, 'x')"
    )
    graph.add(1, workflow=flow)
    graph.end("gave up", 1)
    finish = "UPDATE tenure.workflow SET finished_at = now(), settled_to = id"
    with while_another_waits(url, raw, finish, step(graph, 1, "retried")):
        nothing()
    assert raw.execute("SELECT finished_at, settled_to FROM tenure.workflow").fetchone() == (
        None,
        None,
    )


def test_a_workflow_that_another_session_holds_is_finished_later(
    url: str, raw: Connection, graph: Graph
) -> None:
    id = new_id()
    graph.raw.run(
        f"INSERT INTO {{workflow}} (id, created_at, created_by) VALUES ('{id}', {{now}}, 'x')"
    )
    ends = []
    with closing(Postgres(url)) as db:
        for hold in ("SELECT FROM tenure.workflow FOR UPDATE", "SELECT"):
            with psycopg.connect(url) as other, committed(db):
                other.execute(hold.encode())
                workflows.finish(db, [id])
            ends += raw.execute("SELECT finished_at IS NULL FROM tenure.workflow").fetchall()
    assert ends == [(True,), (False,)]


def test_a_job_that_has_to_be_skipped_stays_on_the_list(raw: Connection, graph: Graph) -> None:
    """Whoever deletes it from the list."""
    graph.add(1, 2, need=1, spare=-1)
    graph.step("skipped", 2)
    raw.execute("DELETE FROM tenure.revisit")
    assert graph.numbers("revisit", "job_id") == [1]


@pytest.mark.parametrize("gated", [False, True])
def test_only_the_last_parent_takes_the_longer_way(
    raw: Connection, graph: Graph, gated: bool
) -> None:
    """The longer way would make a fan-in half as fast as jobs without followers."""
    graph.add(1, 5, followed=1)
    graph.add(6, need=5, start_by="now() + interval '1 day'")
    graph.link(range(1, 6), range(6, 7))
    if gated:
        raw.execute(f"INSERT INTO tenure.gate VALUES ({graph.id(6)}, 0, 5, 0)".encode())
        raw.execute(b"UPDATE tenure.dependency SET gate = 0")
        graph.raw.without_triggers("UPDATE {job} SET need = 1 WHERE need = 5")
    graph.step("claimed", 1, 5)
    raw.execute(b"SET track_functions = 'pl'")
    calls = b"SELECT calls FROM pg_stat_xact_user_functions WHERE funcname = 'follow_all'"
    for parent in range(1, 6):
        with raw.transaction():
            raw.execute(step(graph, parent, "completed").encode())
            longer = raw.execute(calls).fetchone()
        assert longer == ((1,) if parent == 5 else None)
        expiring = "SELECT count(*) FROM tenure.arrival WHERE status = 'waiting'"
        assert graph.raw.value(expiring) == 1  # `record_move` would add another one
    assert graph.state(6) == ("pending", 0, 0)


@pytest.fixture
def plans(url: str) -> Callable[[list[str]], list[str]]:
    """The plans of everything that statements run, triggers too."""

    def explained(statements: list[str]) -> list[str]:
        found: list[str] = []
        with psycopg.connect(url, autocommit=True) as session:
            try:
                session.execute("LOAD 'auto_explain'")
            except psycopg.Error as error:
                pytest.skip(f"auto_explain cannot be loaded: {error}")
            session.add_notice_handler(lambda notice: found.append(notice.message_primary or ""))
            for name in ("log_min_duration = 0", "log_nested_statements = on"):
                session.execute(f"SET auto_explain.{name}".encode())
            session.execute("SET client_min_messages = log")
            for statement in statements:
                session.execute(statement.encode())
        return found

    return explained


def test_counting_is_nested_loops_whatever_came_first(
    graph: Graph, plans: Callable[[list[str]], list[str]]
) -> None:
    """`record_move` switches them off: seen 1.5 s for a batch of 500 that takes 25 ms."""
    graph.add(1, 510, followed=2)
    graph.add(601, 1_110, need=1)
    graph.add(1_201, need=510)
    graph.raw.run(
        "INSERT INTO {dependency} (parent, child, gate)"
        f" SELECT {graph.id('n')}, {graph.id('n + 600')}, NULL"
        " FROM generate_series(1, 510) AS s (n)"
        f" UNION ALL SELECT {graph.id('n')}, {graph.id('1201')}, mod(n, 16)"
        " FROM generate_series(1, 510) AS s (n)"
    )
    graph.raw.run(
        f"INSERT INTO {{gate}} SELECT {graph.id('1201')}, n, 99, 0"
        " FROM generate_series(0, 15) AS s (n)"
    )
    graph.add(511, 518, followed=1)
    graph.step("claimed", 511, 518)
    graph.raw.run(
        "INSERT INTO {dependency} (parent, child, gate)"
        f" SELECT {graph.id('n')}, {graph.id('1201')}, 3"
        " FROM generate_series(511, 518) AS s (n)"
    )
    alone = [step(graph, n, "completed") for n in range(511, 519)]
    one_by_one = [step(graph, n, "cancelled") for n in range(1, 8)]
    batch = step(graph, 510, "cancelled").replace(
        "WHERE id =", f"WHERE id > {graph.id(10)} AND id <="
    )
    seen = [
        p
        for p in plans([*alone, *one_by_one, batch])
        if re.search(r"dependency_pkey|gate_pkey|counted", p)
    ]
    assert len(seen) >= 8 + 8 * 3
    for plan in seen:
        assert not re.search(r"Hash Join|Merge Join|Seq Scan on", plan), plan
