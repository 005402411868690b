"""The plans that SQLite makes for the store's statements, on tables of many rows."""

from __future__ import annotations

import itertools
import re
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tenure.lifecycle import Status
from tenure.rules.search import MAX_AHEAD, Query
from tenure.rules.workflows import WorkflowStatus
from tenure.store import duties, migrate_store, search
from tenure.store.lanes import MAX_SEEN
from tenure.store.rows import COLUMNS, selected
from tenure.store.sqlite import statements as sql
from tenure.store.sqlite.claim import SqliteClaim
from tenure.store.sqlite.connection import connect
from tenure.store.sqlite.reader import AHEAD, GATHERED_BY, SqliteReader
from tenure.store.sqlite.statements import DIALECT, PADDING, SHAPES, OverRows, calls
from tenure.store.tables import queues, stats, workflows
from tenure.values.ids import EPOCH
from tests.support.effort import MANY_ROWS
from tests.support.store import claim_request

reader = SqliteReader(Path())
JOB_COLUMNS = selected(DIALECT, COLUMNS)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A table of many failed jobs and then as many pending ones, made without triggers."""
    path: Path = tmp_path_factory.mktemp("plans") / "jobs.db"
    migrate_store(f"sqlite:///{path}")
    connection = connect(path)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA ignore_check_constraints = ON")  # ids as numbers
    triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
    for (name,) in triggers.fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    for columns, values in (
        (", status, finished_at, last_error", ", 'failed', n, 'boom'"),
        ("", ""),
    ):
        connection.execute(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT ?)"
            f" INSERT INTO tenure_job (id, type, run_at, created_at{columns})"
            f" SELECT format('%d%035d', ?, n), 'mail', n, n{values} FROM n",
            (MANY_ROWS, 1 if columns else 2),
        )
    yield connection
    connection.close()


@pytest.fixture(scope="module", params=["never analysed", "analysed"])
def crowded(
    request: pytest.FixtureRequest, full: sqlite3.Connection
) -> Iterator[sqlite3.Connection]:
    """The same, with statistics or without; analysing is undone."""
    full.execute("BEGIN")
    if request.param == "analysed":
        full.execute("ANALYZE")
    yield full
    full.execute("ROLLBACK")


def plan(connection: sqlite3.Connection, statement: str, values: Sequence[Any] | Any) -> str:
    rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)
    return "\n".join(detail for *_, detail in rows)


@pytest.mark.scenario(100)
def test_a_claim_reads_a_lane_in_order_and_no_further(crowded: sqlite3.Connection) -> None:
    values = {"queue": "default", "priority": 0, "now": MANY_ROWS, "limit": 100, "types": "[]"}
    values |= {"after_time": 1, "after_id": ""}
    ready = "INDEX tenure_job_ready (queue=? AND priority=? AND "
    for of_types, after in sql.PICK:
        found = plan(crowded, sql.PICK[of_types, after], values)
        assert f"SEARCH tenure_job USING {ready}" in found
        assert ("(run_at,id)>(?,?)" in found) is after
        assert "SEARCH job USING INTEGER PRIMARY KEY" in found
        assert "ORDER BY" not in found  # no sorting
    for statement in sql.LAST_SEEN.values():
        found = plan(crowded, statement, values)
        assert f"SEARCH tenure_job USING COVERING {ready}" in found
        assert "ORDER BY" not in found
    for statement, searches in ((sql.NEXT_LANE, 2), (sql.NEXT_PRIORITY, 1)):
        found = plan(crowded, statement, {"queue": "", "priority": 0})
        assert found.count("USING COVERING INDEX tenure_job_ready (queue") == searches
        assert "SCAN tenure_job" not in found
        assert "ORDER BY" not in found


def test_the_newest_jobs_are_read_from_the_end(crowded: sqlite3.Connection) -> None:
    found = plan(crowded, sql.NEWEST, ())
    assert "SCAN tenure_job\n" in found
    assert "ORDER BY" not in found.replace("FOR DISTINCT", "")


@pytest.mark.scenario(104)
def test_a_look_into_a_lane_goes_over_so_many_jobs_and_no_more(crowded: sqlite3.Connection) -> None:
    """Of all the jobs, none of them of the types that are asked for."""
    claim = SqliteClaim(crowded, claim_request(9, types=("other",)), EPOCH + timedelta(days=1))
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    crowded.set_progress_handler(count, 100)  # virtual machine instructions
    try:
        assert claim.take(("default", 0), claim.start, 9) == []
        mark = claim.passed(("default", 0), claim.start)
        assert mark is not None
        assert mark[0] == MAX_SEEN  # the time of row n is n
        assert claim.take(("default", 0), mark, 9) == []
    finally:
        crowded.set_progress_handler(None, 0)
    assert steps < 3 * MAX_SEEN * 30 / 100


@pytest.mark.scenario(100)
def test_those_ahead_are_read_lane_by_lane_and_no_further(crowded: sqlite3.Connection) -> None:
    values = {"queue": "default", "priority": 9, "run_at": 1, "id": LAST}
    found = plan(crowded, AHEAD, values)
    lane = "USING COVERING INDEX tenure_job_ready (queue=? AND priority=? AND "
    assert f"{lane}run_at<?)" in found
    assert f"{lane}(run_at,id)<(?,?))" in found or found.count(f"{lane}run_at<?)") == 2
    assert found.count("USING COVERING INDEX tenure_job_ready (queue=?") == 4
    assert crowded.execute(AHEAD, values).fetchone() == (MAX_AHEAD + 1,)


@pytest.mark.scenario(100)
def test_a_sweep_reads_what_has_expired_and_no_further(crowded: sqlite3.Connection) -> None:
    found = plan(crowded, sql.EXPIRED, (0, 100, 0))
    assert found == "SEARCH tenure_job USING INDEX tenure_job_lease (lease_expires_at<?)"
    look = plan(crowded, duties.statement(DIALECT), ())
    assert "SEARCH tenure_job USING COVERING INDEX tenure_job_lease (lease_expires_at<?)" in look
    assert "SEARCH tenure_job USING COVERING INDEX tenure_job_ready (queue>? AND queue<?)" in look
    assert "SCAN tenure_job" not in look
    assert "SEARCH t USING INTEGER PRIMARY KEY (rowid>?)" in look


LAST = "1" * 36


@pytest.mark.scenario(100)
@pytest.mark.parametrize(
    ("query", "keys"),
    [
        (Query(), ""),
        (Query(before=LAST), "(id<?)"),
        (Query(type="mail", before=LAST), "(id<?)"),
        (Query(status="pending", before=LAST), "(id<?)"),
        (Query(status="pending", type="mail", before=LAST), "(id<?)"),
        (Query(status="failed"), "(status=?)"),
        (Query(status="failed", before=LAST), "(status=? AND id<?)"),
        (Query(status="failed", type="mail", before=LAST), "(status=? AND id<?)"),
        (Query(status="cancelled", queue="none", before=LAST), "(status=? AND id<?)"),
    ],
)
def test_a_list_page_starts_at_its_key(
    crowded: sqlite3.Connection, query: Query, keys: str
) -> None:
    """In the order of an index, so that nothing is sorted; those that failed have their own."""
    index = "tenure_job_ended" if "status=" in keys else "sqlite_autoindex_tenure_job_1"
    (found,) = plan(crowded, *reader.listing(JOB_COLUMNS, query)).splitlines()
    assert found.endswith(f"tenure_job USING INDEX {index} {keys}".rstrip())


@pytest.mark.scenario(100)
@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("status", [None, *Status])
def test_a_search_reads_no_further_than_its_bound(
    crowded: sqlite3.Connection, status: str | None, oldest_first: bool
) -> None:
    asked = Query(
        status=status,
        type="mail",
        queue="default",
        before="9" * 36,
        text="x",
        error="boom",
        created_after=EPOCH + timedelta(hours=2),
        created_by=EPOCH + timedelta(days=2),
        oldest_first=oldest_first,
    )
    span = replace(asked, through=LAST)
    by_status = status in ("failed", "cancelled")
    index = "tenure_job_ended (status=? AND " if by_status else "sqlite_autoindex_tenure_job_1 ("
    (found,) = plan(crowded, *reader.listing("id", span)).splitlines()
    assert f"tenure_job USING INDEX {index}" in found
    assert found.endswith("id>? AND id<?)")  # whatever the other conditions say
    (found,) = plan(crowded, *search.edge(reader, asked, 10_000)).splitlines()
    assert f"tenure_job USING COVERING INDEX {index}" in found
    assert crowded.execute(*search.edge(reader, Query(status="failed"), 3)).fetchone() == (
        f"1{MANY_ROWS - 2:035d}",
    )


@pytest.mark.scenario(100)
@pytest.mark.parametrize("status", GATHERED_BY)
def test_the_few_of_a_status_are_read_by_their_index(
    crowded: sqlite3.Connection, status: Status
) -> None:
    index = f"tenure_job USING {{}}INDEX {GATHERED_BY[status]}"
    for before in (None, LAST):
        query = Query(status=status, before=before, text="x", gather=True)
        assert index.format("") in plan(crowded, *reader.listing(JOB_COLUMNS, query))
    for queue in (None, "default"):
        found = plan(crowded, *search.waiting(reader, Query(status=status, queue=queue), 10_000))
        assert index.format("COVERING ") in found
        assert "ORDER BY" not in found


@pytest.mark.parametrize(
    ("statement", "row", "values", "key"),
    [
        (sql.CLAIM, (1, "lease"), (0, 0, "w", "w"), "INTEGER PRIMARY KEY (rowid=?)"),
        (sql.COMPLETE, ("id", "lease", None, None), (0,), "(id=?)"),
        (sql.save_with(()), ("id", *(None,) * 19), (), "(id=?)"),
    ],
    ids=["claim", "complete", "save"],
)
@pytest.mark.parametrize("count", SHAPES)
def test_a_move_finds_its_jobs_by_key(
    crowded: sqlite3.Connection,
    statement: OverRows,
    row: tuple[Any, ...],
    values: tuple[Any, ...],
    key: str,
    count: int,
) -> None:
    ((text, parameters),) = calls(statement, [row] * count, *values)
    found = plan(crowded, text, parameters)
    (search,) = (line for line in found.splitlines() if " tenure_job " in line)
    assert search.startswith("SEARCH tenure_job USING")
    assert search.endswith(key)


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        (stats.counts(DIALECT), ()),
        (stats.is_far(DIALECT), ()),
        (stats.until(DIALECT), ()),
        (stats.batch_end(DIALECT), (0, 100)),
        (stats.sums_sql(DIALECT), (0, 100)),
        (stats.failures_sql(DIALECT), (0, 100)),
        (stats.filled(DIALECT, queues.of_all(SqliteReader(Path()))), ()),
        (sql.DELETABLE.replace("{status}", "'failed'"), (0, 0, 0, 100)),
    ],
    ids=["counts", "far", "until", "end", "sums", "failures", "queues", "prune"],
)
def test_numbers_are_read_without_reading_every_job_or_move(
    crowded: sqlite3.Connection, statement: str, values: Sequence[Any]
) -> None:
    found = plan(crowded, statement, values)
    first = "SCAN tenure_job USING COVERING INDEX tenure_job_ready"  # for its first entry
    scans = {line.split()[1] for line in found.splitlines() if line.startswith("SCAN ")}
    allowed = {"tenure_job"} if statement.startswith("\nWITH RECURSIVE lane") else set()
    tables = {"tenure_job", "tenure_transition", "t", "j", "c", "head", "last"}
    assert scans & tables == allowed
    assert found.count("SCAN tenure_job") == found.count(first) == len(allowed)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 33, 128, 129, 511, 512, 513, 1000, 1200])
def test_rows_are_bound_all_and_once(crowded: sqlite3.Connection, count: int) -> None:
    rows = OverRows("number", ("n", "twice"), "SELECT ?, n, twice FROM {rows}")
    wanted = [(n, 2 * n) for n in range(1, count + 1)]
    found = [
        (n, twice)
        for text, parameters in calls(rows, wanted, "first")
        for first, n, twice in crowded.execute(text, parameters)
        if first == "first" and n != PADDING
    ]
    assert found == wanted


def test_a_column_that_no_row_uses_is_not_bound(crowded: sqlite3.Connection) -> None:
    """Python takes five times as long to bind a None as to bind a number."""
    rows = OverRows("number", ("n", "more", "twice"), "SELECT n, more, twice FROM {rows}")
    used = [(1, None, 2), (2, 7, None)]
    for given, width in ((used, 3), ([(1, None, 2)], 2), ([(1, None, None)], 1)):
        ((text, parameters),) = calls(rows, given)
        assert len(parameters) == width * (8 if len(given) > 1 else 1)
        assert crowded.execute(text, parameters).fetchall()[: len(given)] == given


def test_no_check_makes_a_table_of_a_list(full: sqlite3.Connection) -> None:
    """SQLite compares with two values; of three or more it makes a table first, for each job."""
    query = "SELECT sql FROM sqlite_schema WHERE name = 'tenure_job'"
    ((table,),) = full.execute(query).fetchall()
    lists = re.findall(r"\bIN \(([^)]*)\)", table)
    assert lists
    assert max(len(values.split(",")) for values in lists) == 2


def test_a_page_of_completed_workflows_reads_what_it_shows(tmp_path: Path) -> None:
    """An index has them by time: 400,000 were read and sorted for each page."""
    page, many, path = 50, 5_000, tmp_path / "jobs.db"
    migrate_store(f"sqlite:///{path}")
    reading = SqliteReader(path)
    steps = itertools.count()
    with reading.connected() as connection:
        connection.set_progress_handler(lambda: next(steps) < 0, 1)
    connection.execute(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT ?)"
        " INSERT INTO tenure_workflow (id, created_at, created_by, finished_at, statuses)"
        " SELECT format('%036d', n), n, 'me', n, 'completed' FROM n",
        (many,),
    )
    before = next(steps)
    found = workflows.listed(
        reading, None, status=WorkflowStatus.COMPLETED, name=None, limit=page, before=None
    )
    connection.set_progress_handler(None, 0)
    reading.close()
    assert len(found) == page
    assert next(steps) - before < many
