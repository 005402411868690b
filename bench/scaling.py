"""Beyond one machine: what worker processes cost on PostgreSQL here, and what that predicts.

Every number is computed from the run. The prediction says that it is one, and how it is reckoned.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Self

from bench.results import Run, number

SUBJECT = "tenure-postgres"
WORKERS = (1, 2, 8)
LARGE_SERVER = 16
ALL_BUSY = 0.85  # of the cores; what is missing then is a rounding of the clock
HEAD = (
    "worker processes",
    "jobs/s",
    "cores busy",
    "PostgreSQL",
    "workers",
    "anything else",
    "WAL",
    "page images",
)
CPU = "µs CPU a job"
UNITS = ("", "", "of {cpus}", CPU, CPU, CPU, "bytes a job", "of them")

TEXT = """\
## Beyond one machine

PostgreSQL and Tenure's workers, draining as above with more and more worker processes on this
machine, whose {cpus} cores the server, the workers and the bench share.

{table}

**Where the bottleneck sits.** The rate is highest with {workers}, where {cores} of the {cpus} cores
are busy: {server_cores} with PostgreSQL, {worker_cores} with the workers and {other_cores} with
anything else: the kernel's own work, the bench, whatever else ran. {verdict} {rivalry}

**A prediction, not a measurement**, for a server with {large} such cores that runs PostgreSQL and
nothing else, workers on other machines, and a disk that keeps up. By the row of {workers}:

- A job costs PostgreSQL {server_us} µs of CPU, so that one core serves
  1,000,000 / {server_us} = {per_core} jobs/s.
- {cpus} cores of the kind here, with no worker beside the server, would serve {cpus} x {per_core} =
  {here_alone} jobs/s, where {rate} were measured with the workers beside it.
- {large} cores would serve {large} x {per_core} = {ceiling} jobs/s **if it scaled perfectly**. That
  is a ceiling and not an expectation.
- To keep up with the ceiling, workers need {ceiling} x {worker_us} µs = {worker_machines} cores on
  other machines.
- Each job writes {wal} bytes of write-ahead log, {wal_here} MB/s at the rate measured here and
  {wal_ceiling} MB/s at the ceiling, all of which must reach the disk.

What stops it below the ceiling, and cannot be seen on {cpus} cores: every commit goes through one
write-ahead log, which is filled under a few locks and flushed in order; all workers of a queue
claim from the head of one index and step over the rows that others hold; and between machines each
turn of a worker waits for the network, which larger batches hide and do not remove."""


@dataclass(frozen=True, slots=True)
class Row:
    """Draining with so many worker processes; CPU in microseconds a job."""

    workers: int
    rate: float
    cores: float
    server_us: float
    worker_us: float
    wal: float
    images: float

    @classmethod
    def of(cls, run: Run, workers: int) -> Self | None:
        """The medians of a run, None if it has not measured all of them."""
        result = run.result(f"drain-{workers}", SUBJECT)
        names = ("rate", "machine_cores", "server_us_per_job", "cpu_us_per_job")
        found = [result.median(name) for name in (*names, "wal_bytes_per_job")]
        values = [value for value in found if value]
        images = result.median("image_bytes_per_job") or 0.0
        return cls(workers, *values, images) if len(values) == len(found) else None

    @property
    def other_us(self) -> float:
        """CPU of whatever is neither the server nor a worker."""
        return max(self.cores / self.rate * 1e6 - self.server_us - self.worker_us, 0.0)

    def cores_for(self, microseconds: float) -> str:
        """How many cores a cost a job keeps busy at this rate."""
        return number(self.rate * microseconds / 1e6, 2)


def scaling(run: Run) -> str:
    """The section of the page; nothing where the run has less than two numbers of processes."""
    rows = [row for workers in WORKERS if (row := Row.of(run, workers))]
    if len(rows) < 2:
        return ""
    cpus = run.machine["cpus"]
    best = max(rows, key=lambda row: row.rate)
    per_core = round(1e6 / best.server_us, -2)  # no more digits than mean anything
    ceiling = LARGE_SERVER * per_core
    said = TEXT.format(
        cpus=cpus,
        table=_table(rows, cpus),
        workers=_processes(best.workers),
        cores=number(best.cores),
        server_cores=best.cores_for(best.server_us),
        worker_cores=best.cores_for(best.worker_us),
        other_cores=best.cores_for(best.other_us),
        verdict=_verdict(best, cpus),
        rivalry=_rivalry(rows),
        large=LARGE_SERVER,
        server_us=number(best.server_us),
        worker_us=number(best.worker_us),
        per_core=number(per_core),
        rate=number(best.rate),
        here_alone=number(cpus * per_core),
        ceiling=number(ceiling),
        worker_machines=number(ceiling * best.worker_us / 1e6, 2),
        wal=number(best.wal),
        wal_here=number(best.rate * best.wal / 1e6),
        wal_ceiling=number(ceiling * best.wal / 1e6),
    )
    return "\n\n".join(map(_wrapped, said.split("\n\n")))


def _table(rows: list[Row], cpus: int) -> str:
    units = [unit.format(cpus=cpus) for unit in UNITS]
    heads = [f"{head}, {unit}" if unit else head for head, unit in zip(HEAD, units, strict=True)]
    lines = [heads, ["---:"] * len(heads)]
    lines += [
        [
            str(row.workers),
            *map(number, (row.rate, row.cores, row.server_us, row.worker_us, row.other_us)),
            number(row.wal),
            number(row.images) if row.images else "-",
        ]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _verdict(best: Row, cpus: int) -> str:
    busy = min(best.cores / cpus, 1.0)  # clocks that tick make it a little more
    if busy < ALL_BUSY:
        return (
            f"That leaves {(1 - busy) * 100:.0f} % of them idle: commits and the order of claims, "
            "which nobody can work on meanwhile, are the limit here, not the processors."
        )
    more, less = "PostgreSQL takes", "the workers do"
    if best.worker_us > best.server_us:
        more, less = "the workers take", "PostgreSQL does"
    return (
        f"With {busy * 100:.0f} % in use the processors are the limit here, "
        f"and {more} more of them than {less}."
    )


def _rivalry(rows: list[Row]) -> str:
    fewest, most = rows[0], rows[-1]
    return (
        f"A job costs PostgreSQL {number(fewest.server_us)} µs with {_processes(fewest.workers)} "
        f"and {number(most.server_us)} µs with {_processes(most.workers)}."
    )


def _wrapped(block: str) -> str:
    """A paragraph or a list with lines of even length, as the rest of the page has them."""
    if block.startswith(("|", "#")):
        return block
    points = block.split("\n- ") if block.startswith("- ") else [block]
    return "\n".join(
        textwrap.fill(
            " ".join(f"- {point.removeprefix('- ')}".split()) if len(points) > 1 else point,
            width=100,
            subsequent_indent="  " if len(points) > 1 else "",
            break_on_hyphens=False,
        )
        for point in points
    )


def _processes(workers: int) -> str:
    return f"{workers} process" if workers == 1 else f"{workers} processes"
