"""A Tenure worker over HTTP: no database, only the address of a server.

It leases and reports in batches, as every remote worker does; 100 handlers at once.
"""

import os

from bench.adapter import PLACE
from bench.workload import CONCURRENCY_VARIABLE, hold, perform
from tenure import Tenure
from tenure.client import Client
from tenure.settings import Settings
from tenure.worker.process import run_worker

CONCURRENCY = int(os.environ.get(CONCURRENCY_VARIABLE, "100"))

app = Tenure()  # for its handlers: no database is opened


@app.job
async def send(n: int, to: str, subject: str, note: str) -> None:
    perform(n)


app.job(hold)


def work() -> None:
    with Client(PLACE) as client:
        run_worker(app, Settings(concurrency=CONCURRENCY), source=client)
