"""Handlers for child processes, which find them here by name."""

from __future__ import annotations

import os
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from tenure import PermanentFailure, Tenure

app = Tenure("sqlite:///never-opened.db")


@app.job(process=True)
def describe(when: datetime, price: Decimal) -> list[str]:
    """The types of the arguments."""
    return [type(when).__name__, type(price).__name__]


@app.job(process=True)
def where() -> dict[str, int]:
    """The process that this runs in, and its parent."""
    return {"pid": os.getpid(), "parent": os.getppid()}


def note(path: str) -> None:
    """Add a line to a file."""
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")


@app.job(process=True)
def note_and_fail(path: str) -> None:
    """Leave a trace, then fail."""
    note(path)
    raise ValueError("flaky")


@app.job(process=True)
def fail_for_good() -> None:
    """Fail in a way that no retry can mend."""
    raise PermanentFailure("no such customer")
