"""A machine that gives no more threads, for a while."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

TOO_LARGE = 1 << 47
"""Bytes: as much as a process can address. Python then asks for threads that cannot be had."""


@contextlib.contextmanager
def no_new_threads() -> Iterator[None]:
    """No thread of this process can be started in the block; those that run go on."""
    before = threading.stack_size(TOO_LARGE)
    try:
        yield
    finally:
        threading.stack_size(before)
