"""A Tenure worker over HTTP: no database, only the address of a server.

It leases and reports in batches, as every remote worker does; 100 handlers at once.
"""

from bench.adapter import PLACE
from bench.workload import concurrency, hold, perform_async
from tenure import Tenure
from tenure.client import Client
from tenure.settings import Settings
from tenure.worker.process import run_worker

app = Tenure()  # for its handlers: no database is opened


@app.job
async def send(n: int, to: str, subject: str, note: str) -> None:
    await perform_async(n)


app.job(hold)


def work() -> None:
    with Client(PLACE) as client:
        run_worker(app, Settings(concurrency=concurrency(100)), source=client)
