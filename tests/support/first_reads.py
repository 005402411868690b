"""Threads that read the first values of types at once, in forks that have read none before."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

FORKS = 60
THREADS = 8


def read_in_forks(read: Callable[[T], object], given: Sequence[T]) -> None:
    """Read all that is given, each thread in another order; a fork that crashes is an error."""
    for _ in range(FORKS):
        if not (copy := os.fork()):
            _read_at_once(read, given)
            os._exit(0)
        assert os.waitpid(copy, 0)[1] == 0, "it crashed"


def _read_at_once(read: Callable[[T], object], given: Sequence[T]) -> None:
    sys.setswitchinterval(1e-6)
    begin = threading.Barrier(THREADS)

    def read_from(turn: int) -> None:
        begin.wait()
        for each in [*given[turn:], *given[:turn]]:
            with suppress(Exception):
                read(each)

    threads = [threading.Thread(target=read_from, args=(n % len(given),)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
