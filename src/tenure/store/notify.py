"""Notify waiting workers and long polls that there may be work. A hint: polling is enough."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from tenure.errors import StoreUnavailable

log = logging.getLogger(__name__)

Watch = Callable[[Callable[[], None], threading.Event], None]


class Notifier:
    """Notifies subscribers of commits, also of other processes once there is a subscriber."""

    def __init__(self, watch: Watch) -> None:
        self._lock = threading.Lock()
        self._subscribers: tuple[Callable[[], None], ...] = ()
        self._stop = threading.Event()
        self._watch = watch
        self._thread: threading.Thread | None = None

    def notify(self) -> None:
        """Call every subscriber. Subscribers must be quick and are called from any thread."""
        for subscriber in self._subscribers:
            try:
                subscriber()
            except Exception as error:  # its event loop may be gone: the others still wait
                log.warning("a subscriber that waits for work could not be notified: %r", error)

    def subscribe(self, subscriber: Callable[[], None]) -> Callable[[], None]:
        """Call `subscriber` from now on; return the function that ends this.

        Raises StoreUnavailable if the thread that watches cannot be started.
        """
        with self._lock:
            others = self._subscribers
            self._subscribers = (*others, subscriber)  # first: the watch notifies as it begins
            if not self._stop.is_set() and self._thread is None:
                try:
                    self._thread = self._started()
                except StoreUnavailable:
                    self._subscribers = others
                    raise

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers = tuple(s for s in self._subscribers if s is not subscriber)
            # The watch continues until the store closes: there is soon another subscriber.

        return unsubscribe

    def _started(self) -> threading.Thread:
        thread = threading.Thread(
            target=self._watch, args=(self.notify, self._stop), name="tenure-watch", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # a limit of the machine
            raise StoreUnavailable(f"new jobs cannot be watched: {error}") from error
        return thread

    def close(self) -> None:
        """End the watch and wait for its thread."""
        with self._lock:
            self._stop.set()
        if self._thread is not None:
            self._thread.join()
