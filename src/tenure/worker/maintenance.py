"""A timer that ends leases that ran out, deletes what retention lets go, measures, and follows.

Any number of sweepers may run: the store tests every lease again in the write that ends it, and
measures each move once, and so it is with the moves that webhooks are told of.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from tenure.app.app import Tenure
from tenure.app.maintenance import retention
from tenure.errors import StoreUnavailable, TenureError
from tenure.jobs.enqueue import Duration
from tenure.telemetry import logs

log = logging.getLogger(__name__)

PRUNE_EVERY = 60.0
FULL_BITE = 500
BULK_SHARE = 0.5
"""Of every interval, at most; a sweep must not wait for long."""
WEBHOOK_SHARE = 0.25
"""Likewise."""
BUSY_SHARE = 0.05
QUIET_SHARE = 0.5
"""Of the time between sweeps, for measuring. While more jobs move than can be measured in that time
the measures fall behind; they catch up once none move."""


class Sweeper:
    """Sweeps every `interval` seconds in its own thread; `keep` is retention by status, if any.

    `withheld`: webhooks are not told errors, which may hold what is redacted. Raises InvalidInput
    for a retention that means nothing: found out at night, by a full disk, it would be too late.
    """

    def __init__(
        self,
        app: Tenure,
        *,
        interval: float = 1.0,
        keep: Mapping[str, Duration] | None = None,
        without_errors: bool = False,
    ) -> None:
        self._app = app
        self._interval = interval
        self._keep = retention(keep or {})
        self._since_prune = PRUNE_EVERY
        self._without_errors = without_errors
        self._stop = threading.Event()
        self._quiet = False  # whether no job moved between the last two times
        self._end = ""
        self._thread = threading.Thread(target=self._run, name="tenure-sweep", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the sweep that may be under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        duties = (self._sweep, self._prune, self._go_on, self._measure, self._follow)
        while not self._stop.is_set():
            for duty in duties:
                if not self._does(duty):
                    break
            self._stop.wait(self._interval)

    def _does(self, duty: Callable[[], None]) -> bool:
        """Do one of the duties; whether there is a database for the next one.

        One that fails keeps no other from being done: leases must end whatever a webhook meets.
        """
        try:
            duty()
        except TenureError as error:
            log.warning("the sweep failed and is tried again in %ss: %s", self._interval, error)
            return not isinstance(error, StoreUnavailable)
        except Exception:
            log.exception("the sweep failed and is tried again in %ss", self._interval)
        return True

    def _sweep(self) -> None:
        while not self._stop.is_set():
            ended = self._app.maintenance().sweep()
            for steps in ended:
                logs.log_steps(log, steps)
            if len(ended) < FULL_BITE:
                return

    def _go_on(self) -> None:
        """Go on with bulk actions, whoever started them."""
        until = time.monotonic() + BULK_SHARE * self._interval
        while (
            not self._stop.is_set()
            and self._app.maintenance().step_bulk_actions()
            and time.monotonic() < until
        ):
            pass

    def _follow(self) -> None:
        """Make deliveries of what has moved, for whoever is to be told."""
        until = time.monotonic() + WEBHOOK_SHARE * self._interval
        maintenance = self._app.maintenance()
        while not self._stop.is_set() and maintenance.forward_to_webhooks(
            without_errors=self._without_errors
        ):
            if time.monotonic() > until:
                return

    def _measure(self) -> None:
        share = QUIET_SHARE if self._quiet else BUSY_SHARE
        until = time.monotonic() + share * self._interval
        self._quiet = False
        while not self._stop.is_set() and self._app.maintenance().measure(yielding=True):
            if time.monotonic() > until:
                end = self._app.events.end()
                self._quiet, self._end = end == self._end, end
                return

    def _prune(self) -> None:
        self._since_prune += self._interval
        if self._since_prune < PRUNE_EVERY:
            return
        self._since_prune = 0.0
        if self._keep:
            while not self._stop.is_set() and self._app.maintenance().prune(self._keep):
                pass
