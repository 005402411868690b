"""Handlers that a child process finds by name."""

from __future__ import annotations

from tenure import Tenure

app = Tenure("sqlite:///never.db")


@app.job(process=True, max_retries=1)
def divide(by: int) -> float:
    return 10 / by
