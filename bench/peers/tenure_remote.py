"""A Tenure worker over HTTP: no database, only the address of a server.

It leases and reports in batches, as every remote worker does; 100 handlers at once.
"""

from bench.adapter import PLACE
from bench.workload import perform
from tenure import Tenure
from tenure.client import Client
from tenure.settings import Settings
from tenure.worker.process import run_worker

CONCURRENCY = 100

app = Tenure()  # for its handlers: no database is opened


@app.job
async def send(n: int, to: str, subject: str, note: str) -> None:
    perform(n)


def work() -> None:
    with Client(PLACE) as client:
        run_worker(app, Settings(concurrency=CONCURRENCY), source=client)
