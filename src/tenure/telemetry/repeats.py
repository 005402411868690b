"""Which errors to log, where an outage would bring the same one again and again."""

from __future__ import annotations

import time

REPEAT_SECONDS = 30.0
"""How long the same error has no further line."""


class Repeats:
    """Remembers the errors that were logged lately, for one place that logs."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}  # by the monotonic clock

    def is_due(self, error: BaseException | str) -> bool:
        """Whether to log an error, or what a text names, now. Call it once for each."""
        now = time.monotonic()
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self._said = {it: at for it, at in self._said.items() if now - at < REPEAT_SECONDS}
        return self._said.setdefault(text, now) == now
