"""Tenure on PostgreSQL and on SQLite, beside its database: the same code, another URL.

Ledger, guards and leases are on, as always; SQLite runs with `synchronous=FULL`. 100 handlers at
once, retries without delay. `BENCH_HANDLER=def` makes the handler a plain function, which runs in
threads.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from bench.adapter import PLACE
from bench.workload import concurrency, hold, payload, perform, perform_async
from tenure import Tenure

HANDLER_VARIABLE = "BENCH_HANDLER"

app = Tenure(PLACE)

if os.environ.get(HANDLER_VARIABLE) == "def":

    @app.job(backoff=0)
    def send(n: int, to: str, subject: str, note: str) -> None:
        perform(n)
else:

    @app.job(backoff=0)
    async def send(n: int, to: str, subject: str, note: str) -> None:
        await perform_async(n)


def prepare() -> None:
    app.open()
    app.close()


def connect() -> Any:
    """A connection of the caller's own, in the way of its driver."""
    if PLACE.startswith("sqlite:"):
        return sqlite3.connect(PLACE.removeprefix("sqlite:///"))
    import psycopg

    return psycopg.connect(PLACE)


class Sender:
    @cached_property
    def connection(self) -> Any:
        return connect()

    def one(self, n: int) -> None:
        send.enqueue(**payload(n))

    def many(self, numbers: Iterable[int]) -> None:
        app.enqueue_many([send.new_job(**payload(n)) for n in numbers])

    def within(self, n: int, note: Callable[[], None]) -> None:
        send.within(self.connection, wake="commit").enqueue(**payload(n))
        note()
        self.connection.commit()

    def hold(self, n: int) -> str:
        return app.enqueue("hold", {"n": n}).id

    def cancel(self, job: str) -> None:
        app.cancel(job)

    def close(self) -> None:
        app.close()


def open_sender(callers: int) -> Sender:
    app.open()
    return Sender()


app.job(hold)


def work() -> None:
    app.run_worker(concurrency=concurrency(100))
