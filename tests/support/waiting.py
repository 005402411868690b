"""How tests wait: call a condition until it is true, and fail after a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WAIT_SECONDS = 30.0
"""Far more than anything here takes, so that no test fails because the machine is busy."""

RECOVERY_SECONDS = 10.0
"""How long after an outage everything may take to work again, without a restart."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.003, 0.03
"""Seconds between two looks."""


def wait_until(condition: Callable[[], T], what: str = "", seconds: float = WAIT_SECONDS) -> T:
    """Call `condition` until it returns something true, and return that.

    Fails after `seconds`; `what` completes the message "waited in vain: …".

    The longer it has waited, the less often it looks. Most conditions ask a database, which takes
    the processor from what is waited for.
    """
    began = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - began
        assert waited < seconds, f"waited {seconds} s in vain: {what or condition}"
        time.sleep(min(max(SHORTEST_PAUSE, waited / 10), LONGEST_PAUSE))
    return value
