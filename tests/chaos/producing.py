"""A producer that writes rows with their jobs, commits or rolls back by chance, and is killed.

    python -m tests.chaos.producing KIND URL LOG SEED KILLS WAY

A child of this process produces until it is killed, at any moment after an answer. Another takes
its place, until KILLS are dead. KIND is a name of `tests.support.lenders`. The WAY is `within`, or
`after`, which loses jobs: they are added after the commit of the row, on a connection of Tenure's.
LOG gets a line after each answer of the database.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import asyncpg
import psycopg
import sqlalchemy.exc

from tenure import StoreUnavailable, Tenure
from tests.support.lenders import POSTGRES, SQLITE, Kind, Lender, lent
from tests.support.raw_sql import RawSql
from tests.support.waiting import wait_until

TABLE = "CREATE TABLE orders (number TEXT PRIMARY KEY)"
NO_ANSWER = (
    OSError,
    StoreUnavailable,
    sqlite3.OperationalError,
    psycopg.OperationalError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresConnectionError,
    sqlalchemy.exc.DBAPIError,
)
"""The database is away, or the file is busy; what became of a commit is unknown."""


def produce(kind: Kind, url: str, log: Path, chance: random.Random, way: str) -> None:
    """Write orders until the process is killed."""
    app = Tenure(url)
    with log.open("a", buffering=1) as answers:
        while True:
            try:
                with lent(kind, url) as lender:
                    while True:
                        outcome, numbers = _order(app, lender, chance, way)
                        answers.write("".join(f"{outcome} {number}\n" for number in numbers))
            except NO_ANSWER:
                time.sleep(0.02)


def _order(app: Tenure, lender: Lender, chance: random.Random, way: str) -> tuple[str, list[str]]:
    """One transaction: its outcome, and the orders that it wrote."""
    numbers = [uuid.uuid4().hex for _ in range(chance.choice((1, 1, 3)))]
    lender.begin()
    if chance.random() < 0.25:
        lender.execute("SAVEPOINT mine")
        _write(app, lender, uuid.uuid4().hex, chance, way)
        lender.execute("ROLLBACK TO SAVEPOINT mine")
    for number in numbers:
        _write(app, lender, number, chance, way)
    if chance.random() < 0.3:
        lender.rollback()
        return "undone", numbers
    lender.commit()
    if way == "after":
        for number in numbers:
            app.enqueue("ship", {"order": number})
    return "committed", numbers


def _write(app: Tenure, lender: Lender, number: str, chance: random.Random, way: str) -> None:
    steps = [lambda: lender.execute(f"INSERT INTO orders VALUES ('{number}')")]
    if way == "within":
        steps.append(lambda: lender.call(app, "enqueue", "ship", {"order": number}))
    for step in chance.sample(steps, k=len(steps)):
        step()


def complaints(url: str, logs: Iterable[Path]) -> list[str]:
    """What is wrong between rows, jobs and answers."""
    with Tenure(url) as app:
        found = [str(violation) for violation in app.verify()]
    sql = RawSql(url)
    rows = {number for (number,) in sql.run("SELECT number FROM orders")}
    payloads = sql.run("SELECT payload FROM {job}")
    jobs = Counter(json.loads(payload)["order"] for (payload,) in payloads)
    sql.close()
    found += [f"a job without its row: {number}" for number in jobs.keys() - rows]
    found += [f"{jobs[number]} jobs of a row: {number}" for number in rows if jobs[number] != 1]
    for log in logs:
        for line in log.read_text().rpartition("\n")[0].splitlines():
            outcome, number = line.split()
            if (number in rows) != (outcome == "committed"):
                found.append(f"{outcome}, said the database: {number}")
    return found


def main(name: str, url: str, log: Path, seed: str, kills: int, way: str) -> None:
    """Let children produce, and kill them."""
    (kind,) = (kind for kind in (*POSTGRES, *SQLITE) if kind.name == name)
    chance = random.Random(seed)
    log.touch()
    for number in range(kills):
        before = log.stat().st_size
        child = os.fork()
        if child == 0:
            produce(kind, url, log, random.Random(f"{seed} {number}"), way)
        wait_until(lambda before=before: log.stat().st_size > before, "an answer")
        time.sleep(chance.random() / 20)  # any moment will do: nothing waits for this
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]), sys.argv[6])
