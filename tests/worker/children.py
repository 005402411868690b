"""Handlers for child processes, which find them here by name."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from tenure import Tenure

app = Tenure("sqlite:///never-opened.db")


@app.job(process=True)
def describe(when: datetime, price: Decimal) -> list[str]:
    """The types of the arguments."""
    return [type(when).__name__, type(price).__name__]
