"""How many jobs a worker asks for and when, and how long it waits after no answer."""

from __future__ import annotations

import secrets
import time

POLL_SECONDS = 0.1
CALM_SECONDS = 0.2
"""A claim asks when the next job falls due once no jobs have come for so long."""
QUIET_SECONDS = 2.0
QUIET_POLL_SECONDS = 0.25
"""How often the source is asked once no jobs have come for `QUIET_SECONDS`. It notifies of new
jobs: polls are for jobs that fall due, and for notifications that got lost."""
SURE_POLL_SECONDS = 2.0
"""The same if the source is sure to notify, and says when the next job falls due."""
MAX_CLAIMED = 1_000
"""Jobs in one claim."""
MIN_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 5.0


class ReportBackoff:
    """How long to wait before the next exchange with a source that did not answer."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.until = 0.0  # by the monotonic clock
        self._random = secrets.SystemRandom()

    def failed(self) -> float:
        """Wait twice as long as the last time; return the seconds.

        They are partly random: workers that lost the source together return one by one.
        """
        self.seconds = min(max(self.seconds * 2, MIN_BACKOFF_SECONDS), MAX_BACKOFF_SECONDS)
        wait = self.seconds * self._random.uniform(0.5, 1.0)
        self.until = time.monotonic() + wait
        return wait

    def answered(self) -> None:
        """Wait no longer: the source has answered."""
        self.seconds = self.until = 0.0


class Demand:
    """How many jobs to claim, and when.

    Jobs are claimed ahead to keep handlers busy during an exchange. `ahead` grows while handlers
    run out of jobs, and shrinks as soon as jobs have to wait for a slot.
    """

    def __init__(self, concurrency: int) -> None:
        self.ahead = 0
        self.backlogged = False
        """Whether the last claim brought as many jobs as it asked for."""
        self.next_poll = 0.0
        self._concurrency = concurrency
        self._may_be_more = True
        self._busy_at = 0.0  # when jobs were claimed last

    def notify(self) -> None:
        """Note that there may be work. Called from any thread."""
        self._may_be_more = True

    def poll(self, now: float) -> None:
        """Suppose that there is work if the source has not been asked for long."""
        if now >= self.next_poll:
            self._may_be_more = True
            self.next_poll = now + (QUIET_POLL_SECONDS if self.is_quiet(now) else POLL_SECONDS)

    def is_quiet(self, now: float) -> bool:
        """Whether no jobs have come for some time."""
        return now - self._busy_at > QUIET_SECONDS

    def is_calm(self, now: float) -> bool:
        """Whether to ask when the next job falls due."""
        return now - self._busy_at > CALM_SECONDS

    def sleep(self, now: float, seconds: float) -> None:
        """Note that only a notification can bring a job before these seconds are over."""
        self.next_poll = now + min(seconds, SURE_POLL_SECONDS)

    def jobs(self, present: int) -> int:
        """Return how many jobs to ask for where `present` are here or on their way."""
        room = self._concurrency + self.ahead - present
        return min(room, MAX_CLAIMED) if self._may_be_more else 0

    def free(self, present: int) -> int:
        """Return how many handlers have nothing to run, where `present` jobs are here or coming."""
        return max(self._concurrency - present, 0)

    def asked(self) -> None:
        """Note that a claim was sent. Without a backlog, the next one waits for a reason."""
        self._may_be_more = self.backlogged

    def answered(self, asked: int, claimed: int, *, idle: bool, max_ahead: int) -> None:
        """Learn from a claim of `asked` jobs. `idle`: no job was left here when it came."""
        if claimed:
            self._busy_at = time.monotonic()
        self.backlogged = claimed >= asked
        if self.backlogged:
            self._may_be_more = True
            if idle:
                self.ahead = min(max(2 * self.ahead, 2 * self._concurrency), max_ahead)
