"""The plans that PostgreSQL makes for the store's statements, whatever its statistics say."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tenure.lifecycle import Status
from tenure.rules.jobs import CheckedJob
from tenure.rules.search import Query
from tenure.store import duties, search
from tenure.store.lanes import MAX_LANES, MAX_SEEN, START
from tenure.store.postgres import lanes as lanes
from tenure.store.postgres import statements as sql
from tenure.store.postgres.connection import address_of, uuids
from tenure.store.postgres.lanes import PostgresClaim
from tenure.store.postgres.reader import AHEAD, BY_INDEX, PostgresReader
from tenure.store.postgres.statements import DIALECT
from tenure.store.postgres.writer import Postgres
from tenure.store.rows import COLUMNS, selected
from tenure.store.search import ENDED
from tenure.store.tables import queues, stats
from tenure.values.ids import new_ids
from tests.support.effort import MANY_ROWS
from tests.support.store import claim_request
from tests.unit.postgres.connections import (
    Connection,
    add,
    ask_in_store_session,
    claim_alone,
    committed,
    take,
)
from tests.unit.postgres.plans import plan

# --- plans ------------------------------------------------------------------------------------


@pytest.fixture
def kept_plans(raw: Connection) -> list[str]:
    """The plans of what functions and triggers run on `raw` from now on, as they are run."""
    try:
        raw.execute("LOAD 'auto_explain'")
    except psycopg.Error as error:
        pytest.skip(f"auto_explain shows the plans of functions, but cannot be loaded: {error}")
    plans: list[str] = []
    raw.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
    for name in ("log_min_duration = 0", "log_nested_statements = on", "log_analyze = off"):
        raw.execute(f"SET auto_explain.{name}")
    raw.execute("SET client_min_messages = log")
    return plans


reader = PostgresReader("postgresql:///plans")
JOB_COLUMNS = selected(DIALECT, COLUMNS)


@pytest.fixture(params=["never analysed", "analysed when empty", "analysed when full"])
def crowded(request: pytest.FixtureRequest, db: Postgres, raw: Connection) -> list[str]:
    """Jobs in a table whose statistics are missing, wrong or right; their ids."""
    for table in ("job", "ready"):
        raw.execute(f"ALTER TABLE tenure.{table} SET (autovacuum_enabled = false)".encode())
    if request.param == "analysed when empty":
        raw.execute("ANALYZE tenure.job, tenure.ready")
    ids = add(db, 3000)
    if request.param == "analysed when full":
        raw.execute("ANALYZE tenure.job, tenure.ready")
    return ids


def test_a_report_finds_its_jobs_by_primary_key(
    url: str, raw: Connection, crowded: list[str], kept_plans: list[str]
) -> None:
    check_report(url, raw, crowded, kept_plans)


def test_a_claim_reads_a_lane_in_order_and_no_further(
    url: str, raw: Connection, crowded: list[str], kept_plans: list[str]
) -> None:
    check_claim(url, raw, kept_plans)


@pytest.mark.parametrize("ordered", [None, "halt"])
def test_a_claim_in_turn_reads_each_partition_in_order_and_no_further(
    url: str, raw: Connection, crowded: list[str], kept_plans: list[str], ordered: str | None
) -> None:
    kept_plans.clear()
    raw.execute(
        "INSERT INTO tenure.queue_limit (queue, max_running, partitioned, per_max_running, ordered,"
        " rate_starts, rate_seconds, burst, every, per_rate_starts, per_rate_seconds, per_burst,"
        " per_every) VALUES ('default', 5, true, 2, %s, 9, 1, 9, 1000000, 9, 1, 9, 1000000)",
        (ordered,),
    )
    (now,) = raw.execute("SELECT now()").fetchone() or ()
    asked = ("w", None, [""], [2], [PostgresClaim.start[0]], [crowded[0]], ordered is not None, 100)
    kept_plans.clear()
    raw.execute("BEGIN")
    raw.execute(address_of(url).sql(sql.ROOM), ("default", now))
    raw.execute(address_of(url).sql(sql.OPEN), ("default", 0, now, "", 0, 5))
    claimed = raw.execute(address_of(url).sql(sql.CLAIM_IN_TURN), ("default", 0, now, now, *asked))
    assert len(claimed.fetchall()) == (2 if ordered is None else 1)
    raw.execute("COMMIT")
    raw.execute(
        address_of(url).sql(sql.PASSED_IN_TURN),
        ("default", 0, now, *map(list, asked[2:3]), *asked[4:6]),
    )
    raw.execute(
        "UPDATE tenure.job SET status = 'cancelled', finished_at = now(), lease_id = NULL,"
        " lease_expires_at = NULL WHERE status = 'processing'"
    )
    read = [plan for plan in kept_plans if "Scan" in plan]
    for table in ("ready", "slot", "line", "queue_limit", "partition_limit"):
        assert not [plan for plan in read if f"Seq Scan on {table}" in plan], table
    walk, *_ = (plan for plan in read if "token.partition >= " in plan)
    assert "using ready_turn" in walk
    assert "Sort" not in walk
    (picked,) = (plan for plan in read if "CTE picked" in plan)
    assert "using ready_turn" in picked
    assert "Tid Scan on ready" in picked
    assert "Index Scan using job_pkey" in picked
    assert "Sort" not in picked.split("CTE picked")[1]
    (claimed_plan,) = (plan for plan in read if "Function Scan on unnest picked" in plan)
    assert "Tid Scan on job" in claimed_plan
    assert len([plan for plan in read if "using slot_pkey" in plan]) >= 4


@pytest.mark.scenario(100)
def test_every_statement_keeps_its_plan_at_many_rows_of_each_kind(
    url: str, raw: Connection, kept_plans: list[str]
) -> None:
    """Many failed jobs, then as many pending ones; in the order of their ids, as in life."""
    raw.execute("ALTER TABLE tenure.job SET UNLOGGED")
    raw.execute("ALTER TABLE tenure.job SET (autovacuum_enabled = false), DISABLE TRIGGER USER")
    for table in ("ready", "ended", "arrival"):
        raw.execute(f"ALTER TABLE tenure.{table} SET UNLOGGED, DISABLE TRIGGER USER".encode())
        raw.execute(f"ALTER TABLE tenure.{table} SET (autovacuum_enabled = false)".encode())
    for columns, values, first in (
        (", status, finished_at, last_error", ", 'failed', now(), 'boom'", 0),
        ("", "", 1),
    ):
        raw.execute(
            f"INSERT INTO tenure.job (id, type, run_at, created_at{columns}) SELECT"
            f" ('{first}' || lpad(to_hex(n), 31, '0'))::uuid, 'mail', now(), now(){values}"
            f" FROM generate_series(1, {MANY_ROWS}) AS n".encode()
        )
    raw.execute(
        "INSERT INTO tenure.ended SELECT status, id FROM tenure.job WHERE status = 'failed'"
    )
    raw.execute(
        "INSERT INTO tenure.arrival (status, at, ids) SELECT status, now(), ARRAY[id]"
        " FROM tenure.job WHERE status = 'failed'"
    )
    raw.execute(
        "INSERT INTO tenure.ready (queue, priority, run_at, id, type)"
        " SELECT queue, priority, run_at, id, type FROM tenure.job WHERE status = 'pending'"
    )
    rows = raw.execute("SELECT id::text FROM tenure.job ORDER BY id DESC LIMIT 500").fetchall()
    for _ in ("never analysed", "analysed"):
        check_report(url, raw, [id for (id,) in rows], kept_plans)
        check_claim(url, raw, kept_plans)
        check_sweep_and_pages(url, raw, rows[-1][0])
        check_numbers(url, raw)
        raw.execute("ANALYZE tenure.job, tenure.ready, tenure.ended, tenure.arrival")


def check_sweep_and_pages(url: str, raw: Connection, last: str) -> None:
    found = plan(raw, url, sql.LOCK_EXPIRED, 100, 0)
    assert "Scan using arrival_at" in found
    assert "Index Scan using job_pkey" in found
    assert "Seq Scan" not in found
    found = plan(raw, url, sql.LOOK)
    assert "Scan using arrival_at" in found
    assert "Tid Scan on arrival" in found
    assert "Seq Scan" not in found
    assert "Sort" not in found
    check_look(url, raw)
    check_search(url, raw, last)


def check_look(url: str, raw: Connection) -> None:
    """It is made once a second by every worker, so it reads nothing that grows."""
    found = plan(raw, url, f"SELECT {', '.join(duties.answers(DIALECT))}")
    assert re.search(r"using arrival_at.*\n *Index Cond: \(\(status = .* AND \(at <= ", found)
    assert re.search(r"using ready_pkey.*\n *Index Cond: \(\(queue >= .* AND \(queue < ", found)
    assert not re.search("Seq Scan on (job|transition|ready|arrival)", found)


SEARCHING = f"BEGIN; {BY_INDEX}"


def check_search(url: str, raw: Connection, last: str) -> None:
    """Each goes along the ids, or along those of its status, and sorts only what is gathered."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    others = {"type": "mail", "queue": "default", "text": "x", "created_by": at}
    for status in (None, *Status):
        along = "ended_pkey" if status in ENDED else "job_pkey"
        plain = Query(status=status, before=last) if status in (None, *ENDED) else None
        span = Query(status=status, before=last, through=last, most=10_000, **others)
        asked = [reader.listing(JOB_COLUMNS, query) for query in (plain, span) if query]
        for statement, values in (*asked, search.edge(reader, span, 10_000)):
            found = plan(raw, url, statement, *values, begin=SEARCHING)
            assert f"Scan Backward using {along}" in found
            assert "Seq Scan" not in found
            assert "Sort" not in found
        if status in (Status.PENDING, Status.PROCESSING):
            index = "ready_pkey" if status is Status.PENDING else "arrival_at"
            gathered = Query(status=status, before=last, type="mail", gather=True)
            few = (reader.listing(JOB_COLUMNS, gathered), search.waiting(reader, gathered, 10_000))
            for statement, values in few:
                found = plan(raw, url, statement, *values, begin=SEARCHING)
                assert f"using {index}" in found
                assert "Seq Scan" not in found
                assert not re.search("(Hash|Merge) Join", found)  # which reads every job


def check_numbers(url: str, raw: Connection) -> None:
    """Neither every job is read for them nor the whole ledger, whatever the statistics say."""
    between = ("3", 0, "4", 0)
    for statement, values in (
        (stats.counts(DIALECT), ()),
        (stats.is_far(DIALECT), ()),
        (stats.until(DIALECT), ()),
        (stats.end_sql(DIALECT), ()),
        (stats.batch_end(DIALECT), ("3", 0, 100)),
        (stats.sums_sql(DIALECT), between),
        (stats.failures_sql(DIALECT), between),
        (stats.filled(DIALECT, queues.of_all(PostgresReader(url))), ()),
    ):
        found = plan(raw, url, statement, *values, begin=SEARCHING)
        assert not re.search("Seq Scan on (job|transition)", found)
        assert "Hash Join" not in found
        assert "Merge Join" not in found
    assert "Sort" not in plan(raw, url, stats.end_sql(DIALECT), begin=SEARCHING)
    place = {"queue": "default", "priority": 9, "run_at": datetime.now(UTC), "id": new_ids(1)[0]}
    found = plan(raw, url, AHEAD, place, begin=SEARCHING)
    assert found.count("using ready_pkey") == 4
    assert "Sort" not in found
    prune = sql.arrived(sql.DELETE_THEM, "failed", kept=False)
    settled = (datetime.now(UTC), 0)
    found = plan(raw, url, prune, *settled, 100, 100, *settled, "3", 0, 100)
    assert "Scan using arrival_at" in found
    assert "Seq Scan on job" not in found
    assert "Seq Scan on transition" not in found


def check_report(url: str, raw: Connection, some: list[str], kept_plans: list[str]) -> None:
    for count in (1, 500):
        ids, leases = uuids(some[:count]), uuids(new_ids(count))
        nothing = [None] * count
        kept_plans.clear()
        raw.execute(address_of(url).sql(sql.COMPLETE), (ids, leases, nothing, nothing))
        (found,) = (plan for plan in kept_plans if "Update on job" in plan)
        assert "Index Scan using job_pkey" in found
        assert "Seq Scan" not in found
        kept_plans.clear()
        columns = [ids if sql.type_of(c) == "uuid" else nothing for c in sql.SAVED]
        raw.execute(address_of(url).sql(sql.SAVE), columns)
        raw.execute(address_of(url).sql(sql.LOCK), [ids])
        save, lock = (plan for plan in kept_plans if "job_pkey" in plan)
        for found in (save, lock):
            assert "Index Scan using job_pkey" in found
            assert "Seq Scan" not in found


def check_claim(url: str, raw: Connection, kept_plans: list[str]) -> None:
    for statement, values in ((lanes.SEARCH_ALL, START), (lanes.SEARCH_QUEUES, [["default"]])):
        kept_plans.clear()
        raw.execute(address_of(url).sql(statement), values)
        (found,) = (plan for plan in kept_plans if "Recursive Union" in plan)
        assert "using ready_pkey" in found
        assert "Seq Scan on ready" not in found
        assert "Sort" not in found.split("CTE walk")[0]
    now = raw.execute("SELECT now()").fetchone() or ()
    for types, most in ((None, 1), (["mail"], 500)):
        asked = ["default", 0, *PostgresClaim.start, *now, *now, "w", types, most, MAX_SEEN]
        kept_plans.clear()
        raw.execute("BEGIN")
        raw.execute(address_of(url).sql(sql.CLAIM), asked)
        raw.execute("ROLLBACK")
        (picked,) = (plan for plan in kept_plans if "LockRows" in plan)
        assert "Index Scan using ready_pkey" in picked
        assert "Tid Scan on ready" in picked
        assert "Index Scan using job_pkey" in picked
        assert "Sort" not in picked
        (claimed,) = (plan for plan in kept_plans if "Update on job" in plan)
        assert "Tid Scan on job" in claimed
        kept_plans.clear()
        nothing: list[None] = []
        raw.execute("BEGIN")
        raw.execute(
            address_of(url).sql(sql.EXCHANGE),
            (*[nothing] * 4, ["default"], 60.0, "w", types, most, MAX_SEEN),
        )
        raw.execute("ROLLBACK")
        assert len([p for p in kept_plans if "Limit" in p and "using ready_pkey" in p]) >= 2
        assert not [p for p in kept_plans if "Seq Scan" in p]
    kept_plans.clear()
    raw.execute(address_of(url).sql(sql.PASSED), ["default", 0, *PostgresClaim.start, *now])
    (found,) = (plan for plan in kept_plans if "using ready_pkey" in plan)
    assert "Sort" not in found
    assert "Seq Scan" not in found
    found = plan(raw, url, sql.NEWEST)
    assert "Index Scan Backward using job_pkey" in found
    assert "Seq Scan" not in found


@pytest.mark.parametrize("statement", [sql.RENEW, sql.SETTLED_AS, sql.KNOWN])
def test_no_statement_reads_a_whole_table(
    url: str, raw: Connection, crowded: list[str], statement: str
) -> None:
    ids = uuids(crowded[:500])
    values = {
        sql.RENEW: [ids, ids, 30.0],
        sql.SETTLED_AS: [ids, ids],
        sql.KNOWN: [ids, ids, ["key"] * 500],
    }[statement]
    found = plan(raw, url, statement, *values)
    assert "Seq Scan on job" not in found
    assert "Seq Scan on transition" not in found


def test_the_ledger_s_plan_for_one_row_serves_for_thousands(
    raw: Connection, db: Postgres, kept_plans: list[str]
) -> None:
    """The trigger keeps its first plan: a nested loop would take 2,000 * 2,000 steps."""
    add(db, 2010)
    transition = (
        "UPDATE tenure.job SET status = 'cancelled', finished_at = now() WHERE id IN"
        " (SELECT id FROM tenure.job WHERE status = 'pending' LIMIT {})"
    )
    for count in (*[1] * 10, 2000):
        raw.execute(transition.format(count))
    kept = [p for p in kept_plans if "Insert on transition" in p]
    assert len(kept) == 11
    assert "Hash Join" in kept[-1]
    assert "Nested Loop" not in kept[-1]
    entries = raw.execute("SELECT count(*) FROM tenure.transition WHERE event = 'cancelled'")
    assert entries.fetchone() == (2010,)


@pytest.mark.parametrize(("count", "joins"), [(1, 0), (1000, 2)])
def test_the_ledger_s_plan_is_not_that_of_the_function_around_it(
    url: str, raw: Connection, db: Postgres, kept_plans: list[str], count: int, joins: int
) -> None:
    """What a function of the hot path switches off holds in the triggers that it fires, too."""
    ids = add(db, 1000)
    now = raw.execute("SELECT now()").fetchone() or ()
    values = ["default", 0, *PostgresClaim.start, *now, *now, "w", None, count, MAX_SEEN]
    leases = raw.execute(address_of(url).sql(sql.CLAIM), values).fetchall()
    assert len(leases) == count
    held = (uuids([row[0] for row in leases]), uuids([row[8] for row in leases]))
    nothing = [None] * count
    raw.execute(address_of(url).sql(sql.COMPLETE), (*held, nothing, nothing))
    kept = [p for p in kept_plans if "Insert on transition" in p]
    assert len(kept) == 2
    assert len([plan for plan in kept if "Hash Join" in plan]) == joins
    assert not [plan for plan in kept if "Nested Loop" in plan]
    assert len(ids) == 1000


# --- old snapshots ----------------------------------------------------------------------------


@pytest.mark.scenario(64)
def test_claims_stay_flat_while_an_old_snapshot_is_open(
    url: str, raw: Connection, db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MAX_DEAD_ENTRIES", 500)
    seconds = 0.0
    db._lanes.clock = lambda: seconds
    raw.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    raw.execute("SELECT count(*) FROM tenure.job")  # from here on nothing dead may be cleared away
    with psycopg.connect(url, autocommit=True) as clock:
        clock.execute("CREATE TABLE tenure.stopped (at timestamptz)")
        clock.execute("INSERT INTO tenure.stopped VALUES ('2026-01-01 00:00+00')")
        clock.execute(
            "CREATE OR REPLACE FUNCTION tenure.clock() RETURNS timestamptz LANGUAGE sql STABLE"
            " AS 'SELECT at FROM tenure.stopped'"
        )
        take(db, 2000)
        clock.execute("UPDATE tenure.stopped SET at = at + interval '1 minute'")
        add(db, 3)

        def walked() -> int:
            db.begin()
            asked = "SELECT pg_stat_get_xact_tuples_returned('tenure.ready_pkey'::regclass)"
            ((before,),) = ask_in_store_session(db, asked)
            assert len(db.claim(claim_request(1))) == 1
            ((after,),) = ask_in_store_session(db, asked)
            db.commit()
            return int(after - before)

        assert walked() > 2000  # the search from the start, which notices
        assert walked() < 50
        add(db, 1, priority=-1)  # a lane nobody knew
        assert walked() < 50
        seconds = 10.0
        db.begin()
        (lease,) = db.claim(claim_request(1))
        db.rollback()
        raw.execute("ROLLBACK")
        job = PostgresReader(url)
        try:
            assert (found := job.get(lease.id)) is not None
            assert found.priority == -1  # found at the next search from the start
        finally:
            job.close()


def test_a_claim_alone_leaves_crowded_lanes_to_a_closer_look(
    raw: Connection, db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MAX_DEAD_ENTRIES", 500)
    raw.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    raw.execute("SELECT count(*) FROM tenure.job")
    take(db, 1000)
    add(db, 3)
    assert len(claim_alone(db, claim_request(1)) or []) == 1  # it notices how many it walked past
    assert claim_alone(db, claim_request(1)) is None
    db.begin()
    assert len(db.claim(claim_request(1))) == 1
    db.commit()
    assert claim_alone(db, claim_request(1)) is None


def test_a_claim_beside_another_one_of_the_only_job_updates_nothing(
    url: str, raw: Connection, db: Postgres, kept_plans: list[str]
) -> None:
    """All waiting workers are notified of a job; for those that do not get it, that is cheap."""
    add(db, 1)
    (now,) = raw.execute("SELECT now()").fetchone() or ()
    asked = ["default", 0, *PostgresClaim.start, now, now, "w", None, 1, MAX_SEEN]

    def claim() -> int:
        kept_plans.clear()
        return len(raw.execute(address_of(url).sql(sql.CLAIM), asked).fetchall())

    db.begin()
    assert len(db.claim(claim_request(1))) == 1
    assert claim() == 0
    assert [plan for plan in kept_plans if "LockRows" in plan]
    assert not [plan for plan in kept_plans if "Update on job" in plan]
    db.rollback()
    assert claim() == 1
    assert [plan for plan in kept_plans if "Update on job" in plan]


def test_a_claim_alone_is_for_one_lane(db: Postgres) -> None:
    assert claim_alone(db, claim_request(5)) == []
    add(db, 2)
    assert claim_alone(db, claim_request(5, types=("other",))) == []
    assert len(claim_alone(db, claim_request(1, queues=("default", "default"))) or []) == 1
    add(db, 1, queue="late", run_at=datetime.now(UTC) + timedelta(hours=1))
    add(db, 1, priority=-1)
    assert claim_alone(db, claim_request(5)) is None  # in which order is not for it to say
    assert len(claim_alone(db, claim_request(5, queues=("late",))) or []) == 0


# --- bounds -----------------------------------------------------------------------------------


@pytest.mark.scenario(104)
@pytest.mark.parametrize("due", [True, False], ids=["due", "waiting"])
def test_a_claim_searches_so_many_lanes_and_no_more(db: Postgres, due: bool) -> None:
    later = None if due else datetime.now(UTC) + timedelta(hours=1)
    with committed(db):
        ids = new_ids(8 * MAX_LANES)
        queues = (f"q{n:05}" for n in range(len(ids)))
        jobs = [
            CheckedJob(id=id, type="mail", queue=queue, run_at=later)
            for id, queue in zip(ids, queues, strict=True)
        ]
        db.insert(jobs)
    asked = "SELECT pg_stat_get_xact_tuples_returned('tenure.ready_pkey'::regclass)"
    for queues_of_claim, most in ((None, 3 * MAX_LANES), (("q00007", "none"), 10)):
        for _ in range(4):
            request = claim_request(9, queues=queues_of_claim)
            assert len(claim_alone(db, request) or []) <= 1
            db.begin()
            ((before,),) = ask_in_store_session(db, asked)
            assert len(db.claim(request)) <= 9
            ((after,),) = ask_in_store_session(db, asked)
            db.commit()
            assert after - before <= most


@pytest.mark.scenario(104)
def test_a_look_into_a_lane_goes_over_so_many_jobs_and_no_more(db: Postgres) -> None:
    add(db, 4 * MAX_SEEN)
    request = claim_request(1, types=("other",))
    assert claim_alone(db, request) is None  # it did not see all of them
    asked = "SELECT pg_stat_get_xact_tuples_returned('tenure.ready_pkey'::regclass)"
    for _ in range(3):
        db.begin()
        ((before,),) = ask_in_store_session(db, asked)
        assert db.claim(request) == []
        ((after,),) = ask_in_store_session(db, asked)
        db.commit()
        assert after - before < 2.1 * MAX_SEEN  # the look, and the search where it ended
