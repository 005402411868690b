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


def wait_until(condition: Callable[[], T], what: str = "", seconds: float = WAIT_SECONDS) -> T:
    """Call `condition` until it returns something true, and return that.

    Fails after `seconds`; `what` completes the message "waited in vain: …"."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what or condition}"
        time.sleep(0.003)
    return value
