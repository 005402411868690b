"""The callback that reports the progress of long work."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int | None, str], None]
"""Called at times with how much is done, of how much (None: not known), and what is done now."""


def no_progress(done: int, total: int | None, doing: str) -> None:
    """Ignore the progress that is reported."""
