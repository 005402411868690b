"""Wakes the requests that wait: when there may be work, and when the server stops.

Nothing depends on a notification. A request that waits also looks for itself now and then, because
jobs become due without one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenure.http.event_stream import EventStream

LOOK_SECONDS = 0.25
"""How often a waiting request looks without a notification."""


class WorkNotifier:
    """Wakes every waiting request, on any event loop."""

    def __init__(self, listen: Callable[[Callable[[], None]], Callable[[], None]]) -> None:
        """`listen(notify)` calls `notify` when there may be work, and returns how to end that."""
        self._listen = listen
        self._lock = threading.Lock()
        self._unlisten: Callable[[], None] | None = None
        self._waiters: set[Waiter] = set()
        self.stopped = False
        self.streams: set[EventStream] = set()  # the open event streams

    def start(self) -> None:
        """Allow waiting, again if it was stopped: an application can have several lifespans."""
        self.stopped = False

    def waiter(self) -> Waiter:
        """Return what the calling coroutine can wait on, to be used in a `with` statement."""
        with self._lock:
            if self._unlisten is None:
                self._unlisten = self._listen(self.notify)
        return Waiter(self._waiters)

    def notify(self) -> None:
        """Wake every waiting request. Safe from any thread."""
        for waiter in tuple(self._waiters):
            waiter.notify()

    def stop(self) -> None:
        """End every wait, now and from now on. Safe from any thread and from a signal handler."""
        self.stopped = True
        self.notify()

    def close(self) -> None:
        """Stop, and end the listening."""
        self.stop()
        with self._lock:
            unlisten, self._unlisten = self._unlisten, None
        if unlisten is not None:
            unlisten()


class Waiter:
    """One waiting coroutine. A notification that comes before `wait` is not lost."""

    def __init__(self, waiters: set[Waiter]) -> None:
        self._waiters = waiters
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._notified = False

    def __enter__(self) -> Waiter:
        self._waiters.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._waiters.discard(self)

    def notify(self) -> None:
        """Wake the coroutine. Several notifications before it runs cost one wake-up."""
        if not self._notified:
            self._notified = True
            try:
                self._loop.call_soon_threadsafe(self._event.set)
            except RuntimeError:  # the loop is closed, so nothing waits on it
                self._waiters.discard(self)

    async def wait(self, seconds: float) -> None:
        """Return at the next notification, or after `seconds`."""
        timer = self._loop.call_later(max(seconds, 0.0), self._event.set)
        await self._event.wait()
        timer.cancel()
        self._notified = False
        self._event.clear()
