"""How far an attempt has come, as its handler says."""

from __future__ import annotations

import msgspec

from tenure.jobs.durations import Time

MAX_MESSAGE = 500
"""Characters of a message that are kept."""
MAX_PROGRESS = 2.0**53 - 1
"""Up to here doubles are exact: an integer of JSON beyond it would be changed before it is seen."""


class JobProgress(msgspec.Struct, frozen=True):
    """How far a job has come, as its handler said last: `done` of `total`, if that is known.

    It is that of the attempt that runs, or that ran last, as in "failed at 63 of 100".
    """

    done: float
    total: float | None = None
    message: str = ""
    at: Time | None = None  # when the store recorded it

    def __post_init__(self) -> None:
        if not (abs(self.done) <= MAX_PROGRESS and abs(self.total or 0) <= MAX_PROGRESS):
            raise ValueError(f"give numbers up to {MAX_PROGRESS:.0f}")

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total:g}"
        return f"{self.done:g}{of} {self.message}".rstrip()

    @property
    def share(self) -> float | None:
        """From 0 to 1; None without a total."""
        return min(max(self.done / self.total, 0.0), 1.0) if self.total else None
