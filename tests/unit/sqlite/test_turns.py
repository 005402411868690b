"""Claims from queues with limits: what they read, and how far they look."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenure.rules.queues import Turn
from tenure.rules.reports import MAX_BYTES, Lease
from tenure.store.sqlite import claim as sqlite_claim
from tenure.store.sqlite.claim import SqliteClaim, SqliteLaneView
from tenure.store.sqlite.connection import connect, to_time
from tenure.values.ids import new_ids
from tests.support.programs import Program
from tests.support.store import claim_request

LANE = ("q", 0)
MANY = 5_000
NOW = "(SELECT at FROM tenure_now)"


@pytest.fixture
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    connection = connect(path)
    connection.execute("BEGIN IMMEDIATE")
    yield connection
    connection.close()


def add(
    raw: sqlite3.Connection, count: int, partition: str, type: str = "mail", payload: str = "{}"
) -> list[str]:
    ids = new_ids(count)
    raw.executemany(
        "INSERT INTO tenure_job (id, type, queue, partition, payload, run_at, created_at)"
        " SELECT ?, ?, 'q', ?, ?, at, at FROM tenure_now",
        [(id, type, partition, payload) for id in ids],
    )
    return ids


def limit(raw: sqlite3.Connection, settings: str = "") -> None:
    raw.execute("INSERT INTO tenure_queue_limit (queue, partitioned) VALUES ('q', 1)")
    if settings:
        raw.execute(f"UPDATE tenure_queue_limit SET {settings}")


def claim(
    raw: sqlite3.Connection, types: tuple[str, ...] | None = None, **more: SqliteLaneView
) -> SqliteClaim:
    (now,) = raw.execute(f"SELECT {NOW}").fetchone()
    return SqliteClaim(raw, claim_request(9, types=types), to_time(now + 1), **more)


def partitions(raw: sqlite3.Connection, leases: list[Lease]) -> list[str]:
    found = dict(raw.execute("SELECT id, partition FROM tenure_job").fetchall())
    return [found[lease.id] for lease in leases]


# --- what they read


def test_no_partition_is_scanned_or_sorted(raw: sqlite3.Connection) -> None:
    values = {
        "queue": "q",
        "priority": 0,
        "now": 1,
        "place": "",
        "looks": 9,
        "share": 1,
        "most": 9,
        "parts": "[]",
        "types": "[]",
    }
    small = tuple(f"SCAN {name}" for name in ("part", "json_each", "walk", "token", "CONSTANT"))
    small += ("SCAN tenure_type USING INDEX tenure_type_paused",)
    for statement in (
        sqlite_claim.WALK,
        sqlite_claim.ROOM,
        sqlite_claim.PASSED,
        *sqlite_claim.PICK.values(),
    ):
        plan = [row[-1] for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
        scans = [line for line in plan if line.startswith("SCAN") and not line.startswith(small)]
        assert scans == []
        assert not any("TEMP B-TREE" in line for line in plan)
        assert not any("AUTOMATIC" in line for line in plan)


def steps_of(raw: sqlite3.Connection, take: SqliteClaim, limit: int) -> tuple[int, list[Lease]]:
    """Claim in turn; return about how many instructions SQLite took for it, and the leases."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    raw.set_progress_handler(count, 100)
    try:
        leases, *_ = take.take_in_turn(LANE, Turn(), limit)
    finally:
        raw.set_progress_handler(None, 0)
    return steps * 100, leases


def test_a_closed_partition_in_front_is_one_look(raw: sqlite3.Connection) -> None:
    """As in the Oban forum, 53388, and with River, which skips over such jobs in order."""
    names = [f"p{number:03}" for number in range(40)]
    for name in names:
        add(raw, 2, name)
    limit(raw)
    few, leases = steps_of(raw, claim(raw), 16)
    assert partitions(raw, leases) == names[:16]
    raw.execute(
        "INSERT INTO tenure_partition_limit (queue, partition, max_running) VALUES ('q', 'a', 0)"
    )
    add(raw, MANY, "a")
    more, leases = steps_of(raw, claim(raw), 16)
    assert partitions(raw, leases) == names[:16]
    assert more < few + 2_000


def test_where_all_are_closed_so_many_are_looked_at_and_no_more(raw: sqlite3.Connection) -> None:
    for number in range(2 * sqlite_claim.MAX_PARTITIONS):
        add(raw, 1, f"p{number:04}")
    limit(raw, "per_max_running = 0")
    steps, leases = steps_of(raw, claim(raw), 16)
    assert leases == []
    assert steps < 200 * sqlite_claim.MAX_PARTITIONS


def test_the_looks_go_on_where_they_ended_and_around(raw: sqlite3.Connection) -> None:
    """The open partition is before as many closed ones as a claim looks at."""
    names = [f"p{number:04}" for number in range(sqlite_claim.MAX_PARTITIONS)]
    for name in ("a", *names):
        add(raw, 1, name)
    limit(raw, "per_max_running = 0")
    raw.execute(
        "INSERT INTO tenure_partition_limit (queue, partition, max_running) VALUES ('q', 'a', 1)"
    )
    leases, turn, _ = claim(raw).take_in_turn(LANE, Turn("p"), 3)
    assert leases == []
    leases, *_ = claim(raw).take_in_turn(LANE, turn, 3)
    assert partitions(raw, leases) == ["a"]


def test_the_look_goes_around_once(raw: sqlite3.Connection) -> None:
    for name in "abc":
        add(raw, 2, name)
    limit(raw, "per_max_running = 1")
    values = {"queue": "q", "priority": 0, "now": 2**50}
    parts, last, _ = sqlite_claim.open_partitions(raw, values, Turn("b"), 9)
    assert ([part.partition for part in parts], last) == (["b", "c", "a"], None)


def test_a_worker_passes_over_jobs_of_other_types_in_bounded_steps(raw: sqlite3.Connection) -> None:
    add(raw, MANY, "a", "other")
    wanted = add(raw, 1, "a")
    limit(raw)
    view = SqliteLaneView()
    for _ in range(MANY // sqlite_claim.MAX_SEEN):
        steps, leases = steps_of(raw, claim(raw, ("mail",), view=view), 5)
        assert leases == []
        assert steps < 200 * sqlite_claim.MAX_SEEN
    assert [lease.id for lease in steps_of(raw, claim(raw, ("mail",), view=view), 5)[1]] == wanted


def test_a_claim_in_turn_is_bounded_in_bytes_and_keeps_the_first(raw: sqlite3.Connection) -> None:
    large = f'{{"text": "{"x" * (MAX_BYTES // 10)}"}}'
    ids = {name: add(raw, 9, name, payload=large) for name in ("a", "b")}
    small = add(raw, 1, "c")
    limit(raw)
    leases, *_ = claim(raw).take_in_turn(LANE, Turn(), 19)
    assert [lease.id for lease in leases] == [*ids["a"][:7], *ids["b"][:3]]
    assert all(lease.payload == large for lease in leases)
    leases, *_ = claim(raw).take_in_turn(LANE, Turn("c"), 1)
    assert [lease.id for lease in leases] == small


def test_shares_of_different_size_come_in_the_order_of_the_turns(raw: sqlite3.Connection) -> None:
    ids = {name: add(raw, 4, name) for name in "dcba"}
    limit(raw)
    raw.execute(
        "INSERT INTO tenure_partition_limit (queue, partition, weight) VALUES ('q', 'b', 3)"
    )
    leases, turn, _ = claim(raw).take_in_turn(LANE, Turn("b"), 6)
    expected = [*ids["b"][:3], ids["c"][0], ids["d"][0], ids["a"][0]]
    assert [lease.id for lease in leases] == expected
    assert turn.partition > "a"


# --- several processes

WORK = """
import random, sqlite3, sys
from tenure.store import open_store
from tests.support.store import claim_request, report_completed, report_failed, report_released
url, name = sys.argv[1:]
random.seed(name)
store = open_store(url)
vain = 0
while vain < 60:
    leases = store.exchange((), claim_request(random.randint(1, 4), name)).result().leases
    vain = 0 if leases else vain + 1
    for lease in leases:
        end = random.choice([report_completed, report_completed, report_failed, report_released])
        store.exchange([end(lease)], None).result()
store.close()
"""
VANDAL = """
import sqlite3, sys
from tests.unit.sqlite.limits import START
db = sqlite3.connect(sys.argv[1].removeprefix("sqlite:///"), isolation_level=None, timeout=20)
refused = 0
for n in range(60):
    some = f"SELECT id FROM tenure_job WHERE status = 'pending' LIMIT {3 if n else 6}"
    (some,) = db.execute(f"SELECT json_group_array(id) FROM ({some})").fetchone()
    try:
        db.execute(START.format(verb="UPDATE OR REPLACE"), {"ids": some, "later": 0})
    except sqlite3.IntegrityError:
        refused += 1
    if n == 0:
        print(refused, flush=True)
"""


def test_no_processes_together_start_more_than_the_limits(path: Path) -> None:
    """As pgqueuer#761. The ledger has every start and end in the order in which they were made."""
    raw = connect(path)
    raw.execute(
        "INSERT INTO tenure_queue_limit (queue, max_running, partitioned, per_max_running)"
        " VALUES ('q', 5, 1, 2)"
    )
    raw.execute("BEGIN")
    for name in random.sample("abcd" * 5, 20):
        add(raw, 4, name)
    raw.execute("UPDATE tenure_job SET backoff = '{\"base\": 0}', event = 'amended'")
    raw.execute("COMMIT")
    url = f"sqlite:///{path}"
    with Program([sys.executable, "-c", VANDAL, url], stdout=subprocess.PIPE) as vandal:
        assert vandal.stdout is not None
        assert vandal.stdout.readline() == b"1\n"  # six at once were refused
        running = [Program([sys.executable, "-c", WORK, url, name]) for name in ("w1", "w2", "w3")]
        assert [process.wait(timeout=120) for process in (vandal, *running)] == [0, 0, 0, 0]
    holders = Counter[str]()
    fullest, most = 0, 0
    ledger = (
        "SELECT t.source, t.target, j.partition FROM tenure_transition AS t"
        " JOIN tenure_job AS j ON j.id = t.job_id ORDER BY t.seq"
    )
    for source, target, partition in raw.execute(ledger):
        holders[partition] += (target == "processing") - (source == "processing")
        fullest, most = max(fullest, *holders.values()), max(most, holders.total())
    assert fullest <= 2
    assert 2 < most <= 5  # else nothing ran side by side
    raw.close()
