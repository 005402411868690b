"""A language model as providers offer it: at first it is not ready, and it has a quota."""

from __future__ import annotations

import asyncio
import time
from collections import deque

QUOTA = 3
"""Calls per second."""
_calls: deque[float] = deque(maxlen=QUOTA)


class Refused(Exception):
    """What a client of such an API raises."""

    def __init__(self, status: int, retry_after: float) -> None:
        super().__init__(f"HTTP {status}, Retry-After: {retry_after:.2f}")
        self.status = status
        self.retry_after = retry_after


async def complete(question: str) -> str:
    """Answer a question; raises Refused with 503 at the first call, and with 429 over the quota."""
    now = time.monotonic()
    if not _calls:
        _calls.append(now - 1)
        raise Refused(503, 0.1)
    if len(_calls) == QUOTA and now - _calls[0] < 1:
        raise Refused(429, 1 - (now - _calls[0]))
    _calls.append(now)
    await asyncio.sleep(0.2)
    return f"The answer to {question!r} is 42."
