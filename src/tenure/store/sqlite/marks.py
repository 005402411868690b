"""How far retention has come where types or queues have rules.

What is kept longer than others lies at the front of the only index of settled jobs. So a batch
begins where the last one ended, and a new round at the front begins every hour, or with other
rules. It finds what has become due, and what was needed by others.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from tenure.jobs.retention import Cutoffs, RetentionRule

ROUND = timedelta(hours=1)
Mark = tuple[int, int]
"""The time at which a job settled, and its rowid."""
FRONT: Mark = (0, 0)


class Marks:
    """The place of the last batch, by status and by how much longer jobs were kept."""

    def __init__(self) -> None:
        self._marks: dict[tuple[str, timedelta], Mark] = {}
        self._rules: tuple[RetentionRule, ...] = ()
        self._since: datetime | None = None

    def start(self, cutoffs: Cutoffs) -> Mark:
        """Return the place after which the next batch begins."""
        since, rules = self._since, cutoffs.rules.every
        if since is None or rules != self._rules or not since <= cutoffs.now < since + ROUND:
            self._marks, self._rules, self._since = {}, rules, cutoffs.now
        return self._marks.get((cutoffs.status, cutoffs.wait), FRONT)

    def end(self, cutoffs: Cutoffs, mark: Mark) -> None:
        self._marks[cutoffs.status, cutoffs.wait] = mark
