"""The callback that reports the progress of long work."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int | None, str], None]
"""Called now and then: how much is done, of how much (None: nobody knows), and what is done now."""


def no_progress(done: int, total: int | None, doing: str) -> None:
    """For those who do not want to know."""
