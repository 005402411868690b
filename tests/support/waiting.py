"""The one way in which these tests wait: ask until it is so, fail if it takes too long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WAIT_SECONDS = 30.0
"""Seconds: far above what anything here takes, so that a busy machine is no failure."""

RECOVERY_SECONDS = 10.0
"""How long after an outage everything may take to work again, without a restart."""


def wait_until(condition: Callable[[], T], what: str = "", seconds: float = WAIT_SECONDS) -> T:
    """Ask `condition` until it holds; its value. Fails after `seconds` with `what` it was about."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what or condition}"
        time.sleep(0.003)
    return value
