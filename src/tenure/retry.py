"""When a failed job is tried again. Pure: policy in, seconds out.

The policy is plain data stored on the job, so any process can apply it without the handler's
code. Jitter is derived from the job's id and the attempt, not from random numbers: jobs that fail
together spread out, and the same history always gives the same times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from tenure.errors import InvalidInput

MAX_DELAY_SECONDS = 10 * 365 * 86_400.0
MAX_FACTOR = 1_000.0
MAX_DELAYS = 20
JITTER = 0.1
"""Jitter: a delay grows or shrinks by at most this share."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a failed job waits for its next attempt: exponential backoff, or a list of delays.

    - `base`: seconds after the first failure, 0 to 315,360,000 (10 years); 0 means no wait after
      any failure. Default: 5.
    - `factor`: what the wait is multiplied by after each further failure, 1 to 1,000. Default: 3.
    - `cap`: the longest wait in seconds, 0 to 315,360,000; `base` if that is longer. Default: 3600,
      one hour.
    - `delays`: up to 20 waits in seconds, each 0 to 315,360,000, in place of the other three; the
      last one repeats. Default: `()`, exponential backoff.

    After attempt n the wait is `base * factor ** (n - 1)` seconds, up to 10 % more or less, and
    never above `cap`; or the nth of `delays`, up to 10 % more or less. The jitter is computed from
    the job's id and n, so it is the same every time.
    How many attempts there are is `max_retries` of the job. Raises InvalidInput for a value out of
    range.
    """

    base: float = 5.0  # seconds
    factor: float = 3.0
    cap: float = 3600.0  # seconds
    delays: tuple[float, ...] = ()  # seconds

    def __post_init__(self) -> None:
        given: object = self.delays
        if not isinstance(given, Iterable):
            said = f"give a list of seconds, not a value of type {type(given).__name__}"
            raise InvalidInput(said, path="$.backoff.delays")
        object.__setattr__(self, "delays", tuple(given))
        if len(self.delays) > MAX_DELAYS:
            raise InvalidInput(f"give at most {MAX_DELAYS} delays", path="$.backoff.delays")
        waits = {f"delays[{n}]": wait for n, wait in enumerate(self.delays)}
        for name, value in {"base": self.base, "cap": self.cap, **waits}.items():
            _check(name, value, 0.0, MAX_DELAY_SECONDS)
        _check("factor", self.factor, 1.0, MAX_FACTOR)
        object.__setattr__(self, "factor", float(self.factor))
        object.__setattr__(self, "cap", max(self.cap, self.base))


def _check(name: str, value: object, low: float, high: float) -> None:
    # also of NaN, and of integers that are no doubles
    if not isinstance(value, float | int) or not low <= value <= high:
        said = f"out of range; use {low:g} to {high:g}"
        if isinstance(value, str | timedelta) and name != "factor":
            said = "a RetryPolicy has seconds, as numbers; with units, write backoff={'base': '5s'}"
        raise InvalidInput(said, path=f"$.backoff.{name}")


DEFAULT_POLICY = RetryPolicy()


def delay(policy: RetryPolicy, job_id: str, attempt: int) -> float:
    """Return the seconds to wait after `attempt` (1 for the first) of job `job_id` has failed.

    The result is never negative and never above the policy's cap, whatever the attempt number. It
    is in whole milliseconds, which both databases store exactly.
    """
    exact, cap = policy.base, policy.cap
    if policy.delays:
        exact, cap = policy.delays[min(max(attempt, 1), len(policy.delays)) - 1], MAX_DELAY_SECONDS
    elif exact:
        try:
            exact *= policy.factor ** max(attempt - 1, 0)
        except OverflowError:
            exact = cap
    if exact == 0:
        return 0.0
    spread = 1.0 + JITTER * _unit(job_id, attempt)
    return min(round(exact * spread, 3), cap)


def _unit(job_id: str, attempt: int) -> float:
    """A number in [-1, 1) that depends only on the job and the attempt."""
    digest = hashlib.blake2b(f"{job_id}/{attempt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**63 - 1.0
