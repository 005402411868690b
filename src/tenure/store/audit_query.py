"""How a question of `tenure verify` is asked, and its answers are read.

An invariant is a sentence. A query reads a table once, in one statement, so all its rows belong to
the same state of the data. Its columns, each with the sentence as its name, say of a row what
breaks the invariant.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from msgspec import Struct

from tenure.jobs.findings import Progress
from tenure.store.dialect import Dialect
from tenure.store.tables import stats_sql


class AuditQuery(Struct, frozen=True):
    """A SELECT of a job and, in columns that are named for invariants, of what breaks them.

    Such a column is NULL in rows that break nothing. Names in braces stand for tables and
    `miscounts`.
    """

    about: str
    select: str

    @property
    def invariants(self) -> list[str]:
        return re.findall(r'AS "(.+)"', self.select)

    def statement(self, dialect: Dialect) -> str:
        """Return the SQL that selects the rows which break an invariant."""
        broken = " OR ".join(f'"{name}" IS NOT NULL' for name in self.invariants)
        text = f"SELECT * FROM ({self.select}) AS seen WHERE {broken}"
        parts = {"broken_value": dialect.broken_value, "tags": dialect.tags}
        parts |= {"miscounts": stats_sql.miscounts(dialect), "turns": dialect.turns}
        name = re.compile("{([a-z_]+)}")
        return name.sub(lambda it: parts.get(it[1]) or dialect.table(it[1]), text)


Finding = tuple[str, str, str]
"""(invariant, job id, what was found)."""


def findings(
    asked: AuditQuery, rows: Iterable[Sequence[Any]], before: Iterable[Finding], limit: int
) -> list[Finding]:
    """Return what the rows show, at most `limit` per invariant, counting those found `before`."""
    listed = Counter(invariant for invariant, _, _ in before)
    found = []
    for job_id, *answers in rows:
        for invariant, answer in zip(asked.invariants, answers, strict=True):
            if answer is not None and listed[invariant] < limit:
                listed[invariant] += 1
                found.append((invariant, str(job_id), str(answer)))
    return found


def queries(
    progress: Progress, questions: Sequence[AuditQuery], more: Sequence[str] = ()
) -> Iterator[AuditQuery]:
    """Yield the queries in turn; before each, report how many invariants were checked.

    `more` names checks that the caller makes afterwards.
    """
    total = sum(len(asked.invariants) for asked in questions) + len(more)
    done = 0
    for asked in questions:
        progress(done, total, asked.about)
        yield asked
        done += len(asked.invariants)
    for number, check in enumerate(more):
        progress(done + number, total, check)
