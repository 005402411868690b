"""The heartbeat of a worker: a thread that keeps its leases, whatever its event loop is doing.

It is also the only one to notice that a handler blocks the loop. Then it says whose handler that
is, hands back the jobs that wait behind it, and keeps no lease whose time limit has long passed:
the loop would have ended that attempt, and nothing else can.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from tenure.worker.attempts import Attempts

log = logging.getLogger(__name__)

BLOCKED_SECONDS = 1.0
"""How long the loop may leave a ring unanswered before its waiting jobs are handed back."""


class Heartbeat:
    """Renews the leases in `held` every third of their time, from `start` to `stop`.

    `renew` extends (job id, lease id) leases and tells which are still held; `hand_back` gives
    up what waits for a slot; `ring` wakes the loop, which counts its `rounds` here.
    """

    def __init__(
        self,
        held: Mapping[str, tuple[str, str]],
        slots: Attempts,
        lease_seconds: float,
        *,
        renew: Callable[[Sequence[tuple[str, str]], float], set[str]],
        hand_back: Callable[[], None],
        notify: Callable[[], None],
    ) -> None:
        self.rounds = 0
        self._held = held
        self._slots = slots
        self._lease_seconds = lease_seconds
        self._renew = renew
        self._hand_back = hand_back
        self._notify = notify
        self._stopped = threading.Event()
        self._now = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._beat, name="tenure-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin; called on the loop to watch."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End, without waiting for it."""
        self._stopped.set()
        self._now.set()

    def beat_now(self) -> None:
        """Renew without delay."""
        self._now.set()

    def join(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for the end."""
        self._thread.join(timeout)

    def _beat(self) -> None:
        interval = self._lease_seconds / 3
        seen, since = -1, time.monotonic()
        while True:
            self._now.wait(interval)
            self._now.clear()
            if self._stopped.is_set():
                return
            if seen != self.rounds:
                seen, since = self.rounds, time.monotonic()
            silent = time.monotonic() - since  # it was rung then
            blocked = silent > BLOCKED_SECONDS
            try:
                interval = self._renew_leases(blocked)
                if blocked:
                    self._say_who_blocks(silent)
                    self._hand_back()
            except Exception as error:
                interval = min(1.0, self._lease_seconds / 10)
                log.warning("the heartbeat failed, trying again in %.1f s: %s", interval, error)
            self._notify()

    def _renew_leases(self, blocked: bool) -> float:
        """Renew what is held; seconds until the next time."""
        third = self._lease_seconds / 3
        given_up = self._slots.overdue(self._lease_seconds) if blocked else set()
        leases = [lease for lease in list(self._held.values()) if lease[1] not in given_up]
        if not leases:
            return third
        began = time.monotonic()
        held = self._renew(leases, self._lease_seconds)
        took = time.monotonic() - began
        if took > third:
            log.warning(
                "a heartbeat took %.1f s, which is long for leases of %g s: jobs may run "
                "twice; use a longer lease, or see why the store is slow",
                took,
                self._lease_seconds,
            )
        for _, lease_id in leases:
            if lease_id not in held and lease_id in self._held:
                self._slots.lose(lease_id)
        return max(third - took, 0.0)

    def _say_who_blocks(self, seconds: float) -> None:
        assert self._loop is not None
        task = asyncio.current_task(self._loop)
        lease = self._slots.lease_of(task) if task is not None else None
        log.warning(
            "the event loop has been blocked for %.0f s by %s: nothing else is started or stopped"
            " here; make a handler that blocks `def`, or `process=True` if it computes",
            seconds,
            f"the handler of job {lease.id} ({lease.type})" if lease else "what is no handler",
        )
