"""A gate before the jobs: workers start and come to rest behind it, then it opens for all at once.

Without it the first worker would have the queue to itself while the others still import. For
Tenure the gate is a paused queue. For the others the bench locks what a claim has to write, so that
each worker waits within its first claim: the table of jobs on PostgreSQL, the file on SQLite, all
writes on Redis. Nothing is claimed before the gate opens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from operator import sub

from bench.processes import Failed, Program, Setting
from bench.stage import Stage

QUEUE = "default"
REST_SECONDS = 0.25
RESTS_BELOW = 0.2  # of a core
STARTED_AFTER = 0.1  # seconds of CPU; no worker starts with less
START_SECONDS = 60.0
POLLS_SECONDS = 20.0


@contextmanager
def closed(stage: Stage, store: Setting) -> Iterator[Callable[[], None]]:
    """Keep jobs from workers until the function that it yields is called."""
    if store.subject.ours:
        from tenure import Tenure

        with Tenure(store.place) as app:
            app.queues.pause(QUEUE)
            yield lambda: app.queues.resume(QUEUE)
        return
    with ExitStack() as held:
        held.enter_context(stage.engine(store.subject).held(store.subject, store.place))
        yield held.close


def wait_until_at_rest(programs: Sequence[Program]) -> None:
    """Wait until every program has started and has nothing to do. Raises Failed.

    Some poll so often that they never rest on a busy machine: those get a while.
    """
    deadline = time.monotonic() + START_SECONDS
    polled_until = deadline
    before = [program.wanted_seconds() for program in programs]
    while time.monotonic() < polled_until:
        time.sleep(REST_SECONDS)
        now = [program.wanted_seconds() for program in programs]
        for program in programs:
            program.check()
        if min(now) > STARTED_AFTER:
            polled_until = min(polled_until, time.monotonic() + POLLS_SECONDS)
            busiest = max(map(sub, now, before))
            if busiest <= RESTS_BELOW * REST_SECONDS:
                return
        before = now
    if polled_until == deadline:
        raise Failed(f"a worker did not start within {START_SECONDS:.0f} s")
