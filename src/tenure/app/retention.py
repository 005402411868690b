"""How long settled jobs of types and queues are kept: `app.retention`."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from datetime import timedelta
from functools import partial

from msgspec import UnsetType

from tenure.app.core import Core, Noun
from tenure.errors import InvalidInput
from tenure.rules.jobs import Duration
from tenure.rules.queues import KEEP
from tenure.rules.retention import FOREVER_SECONDS, RetentionRule, Subject, age
from tenure.rules.search import Counted, Query
from tenure.rules.tokens import includes, require
from tenure.store import search
from tenure.store.tables import retention
from tenure.values.names import check_name

MAX_COUNTED = 10_000
"""Jobs of a status that are counted before a rule deletes them."""


class Retention(Noun):
    """The rules of types and queues whose settled jobs are kept for another time than others.

    For each job the most specific rule holds: that of its type set here, that of its type in
    `@app.job`, that of its queue, and then the settings of the process that deletes. Every worker
    and server obeys the rules, also one that deletes nothing else. Jobs of a workflow are kept as
    long as the workflow, to which no rule applies.
    """

    def set(
        self,
        *,
        type: str | None = None,
        queue: str | None = None,
        completed: Duration | UnsetType | None = KEEP,
        cancelled: Duration | UnsetType | None = KEEP,
        failed: Duration | UnsetType | None = KEEP,
    ) -> RetentionRule:
        """Change how long settled jobs of a type or of a queue are kept. What you omit stays.

        It holds from the next minute on, also for jobs that are settled already.

        - `type`, `queue`: the name of one of them. `tenure.webhook` is the type of deliveries.
        - `completed`, `cancelled`, `failed`: how long jobs of that status are kept: a duration up
          to ten years, or `"forever"`. None: as the next rule says.

        Returns the rule. Raises InvalidInput.
        """
        _check_subject(type, queue)
        given = {"completed": completed, "cancelled": cancelled, "failed": failed}
        ages = {
            status: value if value is None else age(value, f"$.{status}")
            for status, value in given.items()
            if value is not KEEP
        }
        subject: Subject = "queue" if type is None else "type"
        if type is None:
            name, store = check_name(queue, "queue", "$.queue"), self._core.limited_store
            require(self._core.queues, [name])
        else:
            name, store = check_name(type, "job type", "$.type"), self._core.store
        change = partial(retention.change, subject=subject, name=name, given=ages)
        return store.write("operator", change).result()

    def list(self) -> builtins.list[RetentionRule]:
        """Return the rules, by subject and name.

        With a token for some queues, those of these queues alone.
        """
        rules, queues = retention.every(self._core.limited_store.read), self._core.queues
        if queues is None:
            return rules
        return [rule for rule in rules if rule.subject == "queue" and includes(queues, rule.name)]


def settled_before(
    core: Core, *, type: str | None, queue: str | None, ages: Mapping[str, Duration | None]
) -> Counted:
    """Count the settled jobs that are older than a rule would keep them, within bounds.

    `ages` are by status; None, which removes what a rule says, counts all that it keeps now. It
    also counts jobs that another rule or a workflow keeps.
    """
    _check_subject(type, queue)
    read, jobs, exact = core.limited_store.read, 0, True
    subject = ("queue", queue) if type is None else ("type", type)
    now = next((one for one in retention.every(read) if (one.subject, one.name) == subject), None)
    for status, value in ages.items():
        if value is not None:
            seconds = age(value, f"$.{status}")
        else:  # the settings of the process that deletes may say any time
            seconds = FOREVER_SECONDS if getattr(now, status, None) is None else 0.0
        if seconds < FOREVER_SECONDS:
            before = read.clock() - timedelta(seconds=seconds)
            query = Query(
                status=status, type=type, queue=queue, settled_by=before, within=core.queues
            )
            found = search.count(read, query, MAX_COUNTED)
            jobs, exact = jobs + found.jobs, exact and found.exact
    return Counted(jobs, exact)


def _check_subject(type: str | None, queue: str | None) -> None:
    if (type is None) == (queue is None):
        raise InvalidInput("name a type or a queue", path="$")
