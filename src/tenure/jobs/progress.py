"""How far an attempt has come, as its handler says."""

from __future__ import annotations

import math
from datetime import datetime

import msgspec

MAX_MESSAGE = 500
"""Characters of a message that are kept."""


class JobProgress(msgspec.Struct, frozen=True):
    """How far a job has come, as its handler said last: `done` of `total`, if that is known.

    It is that of the attempt that runs, or that ran last, as in "failed at 63 of 100".
    """

    done: float
    total: float | None = None
    message: str = ""
    at: datetime | None = None  # when the store recorded it

    def __post_init__(self) -> None:
        if not math.isfinite(self.done) or not math.isfinite(self.total or 0):
            raise ValueError("progress is a finite number")

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total:g}"
        return f"{self.done:g}{of} {self.message}".rstrip()

    @property
    def share(self) -> float | None:
        """From 0 to 1; None without a total."""
        return min(max(self.done / self.total, 0.0), 1.0) if self.total else None
