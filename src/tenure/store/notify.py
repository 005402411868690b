"""Tells waiting workers and long polls that there may be work. A hint: polling alone is enough."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

Watch = Callable[[Callable[[], None], threading.Event], None]


class Notifier:
    """Rings subscribers on commits of this process, and of others while anybody listens."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._lock = threading.Lock()
        self._subscribers: tuple[Callable[[], None], ...] = ()
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def notify(self) -> None:
        """Call every subscriber; they must be quick and may be called from any thread."""
        for subscriber in self._subscribers:
            try:
                subscriber()
            except Exception as error:  # its event loop may be gone: the others still wait
                log.warning("somebody who waits for work could not be told: %r", error)

    def subscribe(self, subscriber: Callable[[], None]) -> Callable[[], None]:
        """Have `subscriber` called from now on; returns the function that ends it."""
        with self._lock:
            self._subscribers = (*self._subscribers, subscriber)
            if self._thread is None:
                self._stop = threading.Event()
                self._thread = threading.Thread(
                    target=self._watch,
                    args=(self.notify, self._stop),
                    name="tenure-watch",
                    daemon=True,
                )
                self._thread.start()

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers = tuple(s for s in self._subscribers if s is not subscriber)
            # The watch goes on until the store closes: the next subscriber is seldom far.

        return unsubscribe

    def close(self) -> None:
        """Stop watching."""
        with self._lock:
            thread, self._thread = self._thread, None
            if self._stop is not None:
                self._stop.set()
        if thread is not None:
            thread.join()
