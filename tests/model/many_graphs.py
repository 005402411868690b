"""Many random graphs of jobs on both engines: `python -m tests.model.many_graphs JOBS SEED`.

So many jobs on each engine, in graphs of a thousand. Half of them meet bounds so low that ten jobs
have gates and overdue parents. It prints how often each transition was made; 1 if a row of any of
them was ever another one than on the reference.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from tenure.store import migrate_store, open_store
from tests.model.graphs import low_bounds, play
from tests.support.clock import Clock
from tests.support.postgres import PostgresServer
from tests.support.raw_sql import RawSql

ROOT = Path(__file__).parents[2]
JOBS_OF_ONE = 1_000
MADE = "SELECT event, count(*) FROM {transition} GROUP BY event ORDER BY event"


def main() -> int:
    """Play the graphs of one database, or of two on each engine side by side."""
    jobs, seed, *where = sys.argv[1:]
    if where:
        url, bounds = where
        return one_database(url, int(jobs), seed, low=bounds == "low")
    with PostgresServer(durable=False) as server, tempfile.TemporaryDirectory() as folder:
        running = []
        for bounds in ("low", "usual"):
            for url in (f"sqlite:///{folder}/{bounds}.db", server.create_database(bounds)):
                command = [sys.executable, "-m", "tests.model.many_graphs"]
                command += [str(int(jobs) // 2), seed, url, bounds]
                running.append(subprocess.Popen(command, cwd=ROOT))
        return max(process.wait() for process in running)


def one_database(url: str, jobs: int, seed: str, *, low: bool) -> int:
    """Play graphs until there are so many jobs; print what was made."""
    began, played, number = time.monotonic(), 0, 0
    engine, bounds = url.partition(":")[0], "low" if low else "usual"
    with low_bounds(low) as gated_above:
        migrate_store(url)
        above = None if engine == "sqlite" else gated_above
        with (
            closing(open_store(url)) as store,
            closing(RawSql(url)) as raw,
            closing(Clock(url)) as clock,
        ):
            while played < jobs:
                number += 1
                own = f"{seed} {number} {low}"
                try:
                    game = play(store, raw, clock, own, JOBS_OF_ONE, gated_above=above)
                except BaseException as error:
                    error.add_note(f"graph {number} of seed {seed} on {url}")
                    raise
                played += len(game.graph.nodes)
                print(f"{engine}, {bounds} bounds: {number} graphs, {played:,} jobs", flush=True)
            found = store.read.violations(10)
            made = ", ".join(f"{event} {count:,}" for event, count in raw.run(MADE))
    seconds = time.monotonic() - began
    print(f"{engine}, {bounds} bounds, {seconds:.0f} s: {made}", *found, sep="\n  ", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
