"""How many deliveries each webhook may have under way, so that a silent receiver delays no other.

Each webhook has a queue. A worker for deliveries claims from the queues that have room. A webhook
that timed out several times in a row has none for a while; its deliveries stay pending meanwhile.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

log = logging.getLogger(__name__)

CONCURRENCY = 8
"""Deliveries at once."""
MAX_OF_ONE = 2
"""Deliveries at once to one webhook."""
MAX_TIMEOUTS = 3
"""Time-outs in a row from which on a webhook is skipped for a while, and then tried alone."""
MIN_SKIP_SECONDS = 10.0
MAX_SKIP_SECONDS = 300.0


@dataclass(slots=True)
class Silence:
    """What is known of a receiver that has not answered since its last answer."""

    timeouts: int = 0
    until: float = 0.0  # it is skipped


class Receivers:
    """The queues of all webhooks, and which of them have room. Times are of one steady clock."""

    def __init__(self) -> None:
        self.queues: Collection[str] = ()
        self._silent: dict[str, Silence] = {}

    def room(self, here: Iterable[str], now: float) -> tuple[tuple[str, ...], int]:
        """Return the queues to claim from, and how many jobs, with attempts of `here` under way.

        That many jobs are not too many for any of the queues.
        """
        busy = Counter(here)
        free = {queue: self._most(queue, now) - busy[queue] for queue in self.queues}
        queues = tuple(queue for queue, room in free.items() if room > 0)
        most = min((free[queue] for queue in queues), default=0)
        return queues, min(most, CONCURRENCY - busy.total())

    def _most(self, queue: str, now: float) -> int:
        silence = self._silent.get(queue)
        if silence is None or silence.timeouts < MAX_TIMEOUTS:
            return MAX_OF_ONE
        return 1 if now >= silence.until else 0

    def answered(self, queue: str) -> None:
        """Note that a receiver answered, whatever it said."""
        self._silent.pop(queue, None)

    def timed_out(self, queue: str, now: float) -> None:
        silence = self._silent.setdefault(queue, Silence())
        silence.timeouts += 1
        more = silence.timeouts - MAX_TIMEOUTS
        if more >= 0:
            pause = min(MIN_SKIP_SECONDS * 2 ** min(more, 10), MAX_SKIP_SECONDS)
            silence.until = now + pause
            log.warning(
                "%s timed out %d times in a row: no delivery to it for %g s",
                queue,
                silence.timeouts,
                pause,
            )
