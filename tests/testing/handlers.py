"""Handlers that a child process finds by name."""

from __future__ import annotations

import os

from tenure import Tenure

app = Tenure("sqlite:///never.db")


@app.job(process=True, max_retries=1)
def divide(by: int) -> float:
    return 10 / by


@app.job(process=True)
def process() -> int:
    return os.getpid()


@app.job
def plain() -> int:
    return os.getpid()


@app.job(process=True, max_retries=1)
def waits_there(database: str, job_id: str) -> None:
    with Tenure(database) as here:
        here.wait(job_id)
