"""Notify workers and long polls: there may be work, or leases of a worker may have ended.

Hints: polling and heartbeats are enough.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from tenure.errors import StoreUnavailable

log = logging.getLogger(__name__)

WORK = ""
"""What a notification is about that names no worker: there may be work."""
COMMIT = "commit"
"""Something was committed, whatever it is; only some databases say so."""

RECENT_SECONDS = 1.0
"""Who subscribes to work is notified at once of work so shortly before: after its last claim."""

Notify = Callable[[str | None], None]
"""Takes what a notification is about: work, a commit, a worker whose leases may have ended, or
None for all."""
Watch = Callable[[Notify, threading.Event], None]


def _notify(subscriber: Callable[[], None]) -> None:
    try:
        subscriber()
    except Exception as error:  # its event loop may be gone: the others still wait
        log.warning("a subscriber that waits could not be notified: %r", error)


class Notifier:
    """Notifies subscribers of commits, also of other processes once there is a subscriber."""

    def __init__(self, watch: Watch, attend: Callable[[bool], None] = lambda _: None) -> None:
        """`attend` gets whether there is a subscriber to work or commits at present."""
        self._lock = threading.Lock()
        self._subscribers: tuple[tuple[str, Callable[[], None]], ...] = ()
        self._stop = threading.Event()
        self._watch = watch
        self._attend = attend
        self._thread: threading.Thread | None = None
        self._work_at = -math.inf  # monotonic seconds

    def notify(self, about: str | None = WORK) -> None:
        """Call the subscribers, of all topics if `about` is None.

        Subscribers must be quick and are called from any thread.
        """
        if not about:
            self._work_at = time.monotonic()  # first: who subscribes meanwhile learns of it, too
        for topic, subscriber in self._subscribers:
            if about is None or topic == about:
                _notify(subscriber)

    def subscribe(self, subscriber: Callable[[], None], topic: str = WORK) -> Callable[[], None]:
        """Call `subscriber` for a topic from now on; return the function that ends this.

        Raises StoreUnavailable if the thread that watches cannot be started.
        """
        with self._lock:
            others = self._subscribers
            entry = (topic, subscriber)
            self._change((*others, entry))  # first: the watch notifies as it begins
            if not self._stop.is_set() and self._thread is None:
                try:
                    self._thread = self._started()
                except StoreUnavailable:
                    self._change(others)
                    raise
        if topic == WORK and time.monotonic() - self._work_at < RECENT_SECONDS:
            _notify(subscriber)

        def unsubscribe() -> None:
            with self._lock:
                self._change(tuple(e for e in self._subscribers if e is not entry))
            # The watch continues until the store closes: there is soon another subscriber.

        return unsubscribe

    def _change(self, subscribers: tuple[tuple[str, Callable[[], None]], ...]) -> None:
        self._subscribers = subscribers
        self._attend(any(topic in {WORK, COMMIT} for topic, _ in subscribers))

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
