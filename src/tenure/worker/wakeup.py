"""Wakes the event loop of a worker, from the loop itself and from any other thread."""

from __future__ import annotations

import asyncio


class Wakeup:
    """An event that many threads set and one loop waits for."""

    def __init__(self) -> None:
        self.rounds = 0
        """How often the loop has woken up; a number that stands still means a blocked loop."""
        self.loop: asyncio.AbstractEventLoop | None = None
        self.loop_is_closed = False
        self._event = asyncio.Event()
        self._notified = False

    def attach(self) -> None:
        """Take the running loop as the one to wake."""
        self.loop = asyncio.get_running_loop()

    def set(self) -> None:
        """Wake the loop; call this on the loop."""
        self._event.set()

    def notify(self) -> None:
        """Wake the loop; call this from any thread. Many calls in a row cost one wake-up."""
        if not self._notified and self.loop is not None:
            self._notified = True
            try:
                self.loop.call_soon_threadsafe(self._event.set)
            except RuntimeError:
                self.loop_is_closed = True

    async def wait(self, seconds: float) -> None:
        """Wait until the loop is woken, at most for `seconds`."""
        if seconds > 0:
            # Unlike asyncio.wait_for, this makes no task for the event.
            timer = asyncio.get_running_loop().call_later(seconds, self._event.set)
            await self._event.wait()
            timer.cancel()
        else:
            await asyncio.sleep(0)
        self._event.clear()
        self._notified = False
        self.rounds += 1
