"""Programs of this version and of the next ones, which differ in their schema.

    python -m tests.support.next_version VERSION migrate URL
    python -m tests.support.next_version VERSION work URL QUEUE OTHER

VERSION is how many versions later than this one. `work` takes jobs from QUEUE, and its handler adds
jobs to the queue OTHER. It stands apart from its tests: they start it many times, and it needs
nothing of pytest.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import partial

from tenure import JobContext, Tenure
from tenure.settings import Settings
from tenure.store import migrate, migrate_store
from tenure.telemetry import logs
from tenure.worker.process import run_worker

_this_version = migrate.steps


def later(engine: str, versions: int = 1) -> Sequence[tuple[int, str]]:
    """The steps of a later version. Each adds a column to every table, and a table."""
    known = list(_this_version(engine))
    newest, sql = known[-1]
    tables = re.findall(r"^CREATE TABLE ([^ ]+) \(", sql, re.MULTILINE)
    schema = "" if engine == "sqlite" else "{schema}."
    for number in range(newest + 1, newest + 1 + versions):
        added = "".join(
            f"ALTER TABLE {table} ADD COLUMN extra_{number} text;\n" for table in tables
        )
        known.append((number, f"{added}CREATE TABLE {schema}extra_{number} (a integer);\n"))
    return known


def work(url: str, queue: str, other: str) -> None:
    """Run the jobs of a queue; each fails once, then sends the rest of its way to `other`."""
    app = Tenure(url)

    @app.job(max_retries=2, backoff=0)
    def hop(context: JobContext, left: int) -> int:
        if context.attempt == 1:
            raise ValueError("the first attempt")
        if left:
            app.enqueue("hop", {"left": left - 1}, queue=other, max_retries=2, backoff=0)
        return left

    with app:
        run_worker(app, Settings(queues=(queue,)))


def main() -> None:
    version, verb, *arguments = sys.argv[1:]
    migrate.steps = partial(later, versions=int(version))
    logs.configure()
    if verb == "migrate":
        print(migrate_store(*arguments))
    else:
        work(*arguments)


if __name__ == "__main__":
    main()
