"""The one workload: a payload of 150 bytes, and a handler that does nothing but say that it ran.

What ran is noted in a file that all processes map into memory: per job how often it was started,
when it began and when it ended, each one store of a number and no system call. So the bench sees
every lost and every doubled job by its number, and measures from the first handler to the last
without asking the queue.

This module runs in the environments of all peers, so it needs nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

PAYLOAD_BYTES = 150
TALLY_VARIABLE = "BENCH_TALLY"
FAIL_FIRST_VARIABLE = "BENCH_FAIL_FIRST"
CONCURRENCY_VARIABLE = "BENCH_CONCURRENCY"
JOB_SECONDS_VARIABLE = "BENCH_JOB_SECONDS"

_BARE = '{"n":,"to":"user000@example.com","subject":"Your weekly report is ready","note":""}'
_NOTE = "attached as a file of comma separated values, one line for each day of it"


class FirstAttempt(Exception):
    """Raised by the handler where every job is to fail once."""


def payload(n: int) -> dict[str, Any]:
    """The arguments of job number `n`: 150 bytes as JSON without spaces."""
    room = PAYLOAD_BYTES - len(_BARE) - len(str(n))
    return {
        "n": n,
        "to": f"user{n % 1000:03}@example.com",
        "subject": "Your weekly report is ready",
        "note": _NOTE[:room],
    }


class Tally:
    """What ran, by job number below `capacity`; jobs beyond it run without being noted."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.capacity = capacity = len(self._map) // 17 // 8 * 8
        view = memoryview(self._map)
        self.starts = view[:capacity]
        self.began = view[capacity : capacity * 9].cast("Q")
        self.ended = view[capacity * 9 : capacity * 17].cast("Q")

    @classmethod
    def create(cls, path: Path, capacity: int) -> Tally:
        """An empty tally for at least `capacity` jobs, in place of one that may be there."""
        rounded = (capacity + 7) // 8 * 8
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(rounded * 17)
        return cls(path)

    def run(self, n: int) -> None:
        """Note that job `n` ran."""
        if n < self.capacity:
            self.starts[n] += 1
            self.ended[n] = time.monotonic_ns()

    def run_at_second_start(self, n: int) -> None:
        """Note that job `n` ran, unless this is its first start: then note that, and fail."""
        if n >= self.capacity or self.starts[n]:
            self.run(n)
            return
        self.starts[n] = 1
        self.began[n] = time.monotonic_ns()
        raise FirstAttempt(f"job {n} fails the first time")

    def missing(self, jobs: int, starts: int = 1) -> int:
        """How many of the first `jobs` have been started less than `starts` times."""
        seen = bytes(self.starts[:jobs])
        return sum(seen.count(number) for number in range(starts))

    def doubled(self, jobs: int, starts: int = 1) -> int:
        """How many of the first `jobs` have been started more than `starts` times."""
        seen = bytes(self.starts[:jobs])
        return jobs - sum(seen.count(number) for number in range(starts + 1))


@cache
def tally() -> Tally:
    """The tally that the bench made for this process."""
    return Tally(Path(os.environ[TALLY_VARIABLE]))


def concurrency(default: int) -> int:
    """How many jobs a worker may run at once: what the workload asks for, else the default."""
    return int(os.environ.get(CONCURRENCY_VARIABLE, str(default)))


def perform(n: int) -> None:
    """What every plain handler of every peer does."""
    if JOB_SECONDS:
        time.sleep(JOB_SECONDS)
    _note(n)


async def perform_async(n: int) -> None:
    """What every `async def` handler of every peer does."""
    if JOB_SECONDS:
        await asyncio.sleep(JOB_SECONDS)
    _note(n)


def _note(n: int) -> None:
    if FAIL_FIRST:
        tally().run_at_second_start(n)
    else:
        tally().run(n)


async def hold(n: int) -> None:
    """Note that job `n` has begun, run until the queue cancels it, and note when that was."""
    tally().starts[n] += 1
    try:
        await asyncio.Event().wait()
    finally:
        tally().ended[n] = time.monotonic_ns()


async def hold_until(n: int, is_cancelled: Callable[[], bool]) -> None:
    """The same where a handler has to ask the queue: it asks each millisecond."""
    tally().starts[n] += 1
    while not is_cancelled():  # noqa: ASYNC110 - the queues have nothing to wait for
        await asyncio.sleep(0.001)
    tally().ended[n] = time.monotonic_ns()


FAIL_FIRST = FAIL_FIRST_VARIABLE in os.environ
JOB_SECONDS = float(os.environ.get(JOB_SECONDS_VARIABLE, "0"))
