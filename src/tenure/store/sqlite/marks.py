"""How far retention has come where types or queues have rules, or jobs cannot be deleted.

What stays longer than others lies at the front of the only index of settled jobs. So a batch
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
        self._refused = False

    def are_needed(self, cutoffs: Cutoffs) -> bool:
        """Whether jobs may lie at the front that stay."""
        return bool(cutoffs.rules.every) or (self._refused and self._is_in_round(cutoffs))

    def refused(self, cutoffs: Cutoffs) -> None:
        """Note that the database refused to delete a job: a new round begins."""
        self._begin(cutoffs)
        self._refused = True

    def start(self, cutoffs: Cutoffs) -> Mark:
        """Return the place after which the next batch begins."""
        if not self._is_in_round(cutoffs):
            self._begin(cutoffs)
        return self._marks.get((cutoffs.status, cutoffs.wait), FRONT)

    def _is_in_round(self, cutoffs: Cutoffs) -> bool:
        if self._since is None or cutoffs.rules.every != self._rules:
            return False
        return self._since <= cutoffs.now < self._since + ROUND

    def _begin(self, cutoffs: Cutoffs) -> None:
        self._marks, self._rules, self._since = {}, cutoffs.rules.every, cutoffs.now
        self._refused = False

    def end(self, cutoffs: Cutoffs, mark: Mark) -> None:
        self._marks[cutoffs.status, cutoffs.wait] = mark
