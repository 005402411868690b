"""What a process does first: after a fork, also by C code, and as the first one of a container.

Python calls functions for that, but not in a child that C code has forked, as uWSGI does by
default. So code that uses what a fork breaks looks at `pid` first, and calls `notice`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

pid = os.getpid()
"""The process that did so; in a child that did not yet, its parent."""
ADVICE = (
    "for gunicorn --preload: def pre_fork(server, worker): app.close(); for uWSGI: lazy-apps = true"
)
"""How a program closes a file before its server forks, or opens it only afterwards."""
_beginnings: list[Callable[[], None]] = []
_listeners: list[socket.socket] = []
_lock = threading.RLock()  # a signal handler may enqueue in the middle of it


def end_at_sigterm() -> None:
    """Let SIGTERM end this process, if it is the first one of a container, until it has work.

    The kernel sends no signal to such a process that it does not answer itself. A worker that was
    stopped while it started would continue, take jobs, and be killed in the middle of them.
    """
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))


def in_child(begin: Callable[[], None]) -> None:
    """Call a function in each child, before it uses what the function is about."""
    _beginnings.append(begin)


@contextmanager
def kept_from_children(*listeners: socket.socket) -> Iterator[None]:
    """Let no child that is forked in the block listen on these sockets.

    A child that a handler leaves behind would keep the port from the next process.
    """
    _listeners.extend(listeners)
    try:
        yield
    finally:
        _listeners[:] = [other for other in _listeners if other not in listeners]


def _stop_listening() -> None:
    numbers = [number for one in _listeners if (number := one.fileno()) >= 0]
    _listeners.clear()
    if not numbers:
        return
    with suppress(OSError):  # no file is left: what else a child does first matters more
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number in numbers:
            os.dup2(nothing, number, inheritable=False)  # closed, it would soon be another file
        os.close(nothing)


in_child(_stop_listening)


def notice() -> None:
    """Do it, if this is a child that did not yet: if `pid` is not that of the process."""
    if os.getpid() != pid:
        with _lock:  # another thread may be in the middle of it
            if os.getpid() != pid:
                _begin()


def _begin() -> None:
    global pid  # noqa: PLW0603 - it is the process's
    for begin in _beginnings:
        begin()
    pid = os.getpid()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - a thread of the parent may hold it
    _lock = threading.RLock()
    _begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
