"""Which handlers a worker cannot start at present, through no fault of their jobs.

The machine gives it no thread, or a child process does not start or does not find the module of the
handler, as after the folder of a release was deleted. Such an attempt is handed back. The worker
claims no more jobs of that type for a while, so that other workers get them.
"""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

MIN_UNFIT_SECONDS = 0.5
MAX_UNFIT_SECONDS = 30.0
"""A job may be handed back 100 times, so it waits about 50 minutes for a worker that is fit."""


class NotStarted(Exception):
    """An attempt could not be started for a reason that has nothing to do with its job."""


class Fitness:
    """The types whose handlers could not be started, each with the time of the next try."""

    def __init__(self) -> None:
        self._unfit: dict[str, tuple[float, float]] = {}  # type -> (next try, pause), seconds

    def failed(self, type: str, why: str) -> None:
        """Note and log that a handler could not be started; the pause doubles each time."""
        now = time.monotonic()
        until, pause = self._unfit.get(type, (now, MIN_UNFIT_SECONDS / 2))
        if now < until:  # claimed together with the one that failed first
            return
        pause = min(2 * pause, MAX_UNFIT_SECONDS)
        self._unfit[type] = (now + pause, pause)
        log.error(
            "this worker is unfit: jobs of type %s cannot be started here. They are handed back, "
            "and the next try is in %.1f s: %s",
            type,
            pause,
            why,
        )

    def started(self, type: str) -> None:
        """Note that a handler was started."""
        if type in self._unfit:
            del self._unfit[type]
            log.warning("this worker is fit again for jobs of type %s", type)

    def is_unfit(self, type: str) -> bool:
        """Whether it is too early for another try."""
        return type in self._unfit and time.monotonic() < self._unfit[type][0]

    def troubles(self) -> list[str]:
        """Return a sentence for each type that is unfit now."""
        unfit = [type for type in tuple(self._unfit) if self.is_unfit(type)]
        return [f"jobs of type {type} cannot be started here" for type in unfit]

    def fit(self, types: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Return those of `types` that may be claimed; of None, which means all, none meanwhile."""
        unfit = {type for type in self._unfit if self.is_unfit(type)}
        return tuple(type for type in types or () if type not in unfit) if unfit else types
