"""What `tenure verify` and `tenure doctor` find, and how long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Violation:
    """A stored fact that breaks an invariant; `advice` says what that means and what to do.

    `job_id` is empty if it is not about a single job.
    """

    invariant: str
    job_id: str
    found: str
    advice: str


class CheckResult(StrEnum):
    """The result of a check: in order, worth knowing, or in need of repair."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that `tenure doctor` looked at; `advice` says what a fault means and what to do."""

    name: str
    health: CheckResult
    found: str
    advice: str = ""


Progress = Callable[[int, int | None, str], None]
"""Called at times with how much is done, of how much (None: not known), and what is done now."""


def no_note(text: str) -> None:
    """Ignore a sentence."""


def no_progress(done: int, total: int | None, doing: str) -> None:
    """Ignore the progress that is reported."""
