"""Tenure on PostgreSQL and on SQLite, beside its database: the same code, another URL.

Ledger, guards and leases are on, as always; SQLite runs with `synchronous=FULL`. 100 handlers at
once, retries without delay. `BENCH_HANDLER=def` makes the handler a plain function, which runs in
threads.
"""

import os
from collections.abc import Iterable

from bench.adapter import PLACE
from bench.workload import CONCURRENCY_VARIABLE, hold, payload, perform
from tenure import Tenure

CONCURRENCY = int(os.environ.get(CONCURRENCY_VARIABLE, "100"))
HANDLER_VARIABLE = "BENCH_HANDLER"

app = Tenure(PLACE)

if os.environ.get(HANDLER_VARIABLE) == "def":

    @app.job(backoff=0)
    def send(n: int, to: str, subject: str, note: str) -> None:
        perform(n)
else:

    @app.job(backoff=0)
    async def send(n: int, to: str, subject: str, note: str) -> None:
        perform(n)


def prepare() -> None:
    app.open()
    app.close()


class Sender:
    def one(self, n: int) -> None:
        send.enqueue(**payload(n))

    def many(self, numbers: Iterable[int]) -> None:
        app.enqueue_many([send.new_job(**payload(n)) for n in numbers])

    def close(self) -> None:
        app.close()


def open_sender(callers: int) -> Sender:
    app.open()
    return Sender()


app.job(hold)


def work() -> None:
    app.run_worker(concurrency=CONCURRENCY)
