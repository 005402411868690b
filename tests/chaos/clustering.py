"""Clients of a cluster whose primary fails again and again: `python -m tests.chaos.clustering N`.

N failovers of each kind of `tests.support.cluster.FAULTS`, in rounds. In a round, a producer and a
worker use the cluster by each of its WAYS. No process of them is ever started again. At its end
all is drained, and what each was told is held against what is stored. It prints how long clients
waited: from the fault to a new primary, and from that to claims by each way, and to as many reports
as before. A third argument names a file for these figures.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tenure import PerPartition, Tenure
from tests.chaos import checker
from tests.support import fault_counts
from tests.support.cluster import FAULTS, WAYS, Cluster
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
EACH = PerPartition(max_running=2)
PER_ROUND = 2
"""Failovers of each kind before all is drained and checked."""
QUIET_SECONDS = 4.0
"""How long all goes well before a fault, which tells how much is done in a second."""
ENOUGH = 0.8
"""The part of the reports per second of before at which the throughput is back."""
BACK_SECONDS = 60.0
DRAIN_SECONDS = 120.0


@dataclass(frozen=True)
class Recovery:
    """What became of one fault, in seconds."""

    kind: str
    primary: float  # from the fault to a new primary
    claims: Mapping[str, float]  # from that to a claim, by each way
    throughput: float  # from that to as many reports as before

    def __str__(self) -> str:
        ways = ", ".join(f"{way} {seconds:.1f}" for way, seconds in self.claims.items())
        return (
            f"{self.kind}: primary after {self.primary:.1f} s; then claims by {ways}; "
            f"throughput {self.throughput:.1f}"
        )


class Meter:
    """Reads the records while they grow: who was answered when, by the monotonic clock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: Counter[Path] = Counter()
        self.claims = dict.fromkeys(WAYS, 0.0)
        """When a claim brought jobs last, by each way."""
        self.reports = list[float]()

    def look(self) -> Self:
        """Read what has been added."""
        for path in self._folder.glob("*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._read[path])
                added = file.read().rpartition(b"\n")[0]
            self._read[path] += len(added) + bool(added)
            for line in added.split(b"\n"):
                if b'"kind": "ok"' in line and (b'"leases": [{' in line or b'"answer"' in line):
                    self._note(json.loads(line))
        return self

    def _note(self, line: Mapping[str, Any]) -> None:
        if "answer" in line:
            self.reports.append(line["mono"])
        else:
            way = next(way for way in WAYS if line["who"].startswith(f"worker-{way}-"))
            self.claims[way] = max(self.claims[way], line["mono"])

    def rate(self, since: float, until: float) -> float:
        """Reports per second in this time."""
        return sum(since <= at < until for at in self.reports) / (until - since)


class Crew:
    """A producer and a worker by each of these ways, on machine 0."""

    def __init__(
        self, cluster: Cluster, database: str, folder: Path, seed: str, ways: Sequence[str] = WAYS
    ) -> None:
        self._folder = folder
        self._parts = {
            f"{role}-{way}": cluster.machines.start(
                [
                    *(sys.executable, "-m", "tests.chaos.cluster_part", role),
                    *(cluster.url(way, database), str(folder), f"{role}-{way}", seed),
                ],
                0,
                folder / "output",
                ROOT,
                stdin=subprocess.PIPE,
            )
            for way in ways
            for role in ("worker", "producer")
        }

    def dismiss(self, role: str) -> list[str]:
        """Let those of a role finish; who ended before, or badly, is a finding."""
        chosen = {name: part for name, part in self._parts.items() if name.startswith(role)}
        found = [f"ended by itself: {one}" for one in self.ended() if one.startswith(role)]
        for part in chosen.values():
            assert part.stdin is not None
            part.stdin.close()
        for name, part in chosen.items():
            with contextlib.suppress(subprocess.TimeoutExpired):
                if part.wait(DRAIN_SECONDS) == 0:
                    continue
            found.append(f"{name} did not end well: {part.returncode}")
        return found

    def ended(self) -> list[str]:
        """Who is not at work any more."""
        parts = self._parts.items()
        return [f"{name}: {part.returncode}" for name, part in parts if part.poll() is not None]

    def said(self) -> str:
        """The end of what they logged."""
        return (self._folder / "output").read_text(errors="replace")[-4000:]


def play(cluster: Cluster, kind: str, meter: Meter) -> Recovery:
    """One fault, until all is as before."""
    time.sleep(QUIET_SECONDS)
    meter.look()
    began = time.monotonic()
    before = meter.rate(began - QUIET_SECONDS, began)
    claims, throughput = dict[str, float](), list[float]()

    def is_back() -> bool:
        time.sleep(0.1)
        meter.look()
        for way, at in meter.claims.items():
            if at > new:
                claims.setdefault(way, at - new)
        while not throughput and (second := candidates[0]) + 1 < time.monotonic():
            if meter.rate(second, second + 1) >= ENOUGH * before:
                throughput.append(second - new)
            candidates[0] += 0.25
        return len(claims) == len(WAYS) and bool(throughput)

    with FAULTS[kind](cluster) as candidates_for:
        new = cluster.wait_for_primary(candidates_for)
        candidates = [new]
        fault_counts.count("failovers")
        wait_until(
            is_back, f"{kind}: all ways to be as before: {claims}, {throughput}", BACK_SECONDS
        )
    cluster.wait_until_whole()
    return Recovery(kind, new - began, claims, throughput[0])


def play_round(
    cluster: Cluster, folder: Path, kinds: Sequence[str], seed: str
) -> Iterator[Recovery | str]:
    """A new database and a new crew for these faults; at the end, every finding."""
    database = f"jobs_{seed.replace(' ', '_')}"
    cluster.create_database(database)
    inner = cluster.inner_url(database)
    with Tenure(inner) as app:
        app.queues.limit("limited", max_running=4, rate="100/1s", per_partition=EACH)
    crew, meter = Crew(cluster, database, folder, seed), Meter(folder)

    def all_work() -> bool:
        assert not crew.ended(), crew.ended()
        return all(meter.look().claims.values())

    try:
        wait_until(all_work, "all to work", BACK_SECONDS)
        for kind in kinds:
            yield play(cluster, kind, meter)
        yield from crew.dismiss("producer")
        with Tenure(inner) as app:
            wait_until(lambda: _is_empty(app), "every job to settle", DRAIN_SECONDS)
        yield from crew.dismiss("worker")
        yield from checker.check(folder, inner)
    except AssertionError as error:
        error.add_note(f"ended by itself: {crew.ended()}\n{crew.said()}\n{cluster.said()}")
        raise


def _is_empty(app: Tenure) -> bool:
    time.sleep(0.2)
    return not any(c.jobs for c in app.stats.counts() if c.status in ("pending", "processing"))


def run(kinds: Iterable[str], seed: int) -> Iterator[Recovery | str]:
    """These faults in their order, on a cluster of our own: each recovery, and what was wrong."""
    left = list(kinds)
    number = 0
    with Cluster() as cluster:
        while left:
            number += 1
            size = PER_ROUND * len(FAULTS)
            now, left = left[:size], left[size:]
            with tempfile.TemporaryDirectory() as folder:
                yield from play_round(cluster, Path(folder), now, f"{seed} {number}")


def figures(recoveries: Iterable[Recovery]) -> dict[str, dict[str, list[float]]]:
    """Kind -> how long each step took, in seconds, each time."""
    of_kind: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in recoveries:
        of = of_kind[one.kind]
        of["primary"].append(round(one.primary, 1))
        of["claims"].append(round(max(one.claims.values()), 1))
        of["throughput"].append(round(one.throughput, 1))
    return of_kind


def keep(path: Path, seed: int, minutes: float, recoveries: Iterable[Recovery]) -> None:
    """Write down what has been seen so far."""
    kept = {
        "when": time.strftime("%Y-%m-%d"),
        "minutes": round(minutes),
        "seed": seed,
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "load": f"load {os.getloadavg()[2]:.0f}",
        "kinds": figures(recoveries),
        "figures": fault_counts.total(Path(os.environ[fault_counts.ENVIRONMENT])),
    }
    path.write_text(json.dumps(kept) + "\n", encoding="utf-8")


def main() -> int:
    """Print each recovery and each finding; 1 if anything was found wrong."""
    failovers, seed = int(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(seed)
    kinds = [kind for _ in range(failovers) for kind in chance.sample([*FAULTS], len(FAULTS))]
    recoveries, findings = list[Recovery](), list[str]()
    began = time.monotonic()
    print(f"{len(kinds)} failovers of a cluster, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[fault_counts.ENVIRONMENT] = f"{folder}/figures"
        kept = Path(sys.argv[3] if len(sys.argv) > 3 else f"{folder}/kept")
        for one in run(kinds, seed):
            print(f"{time.strftime('%H:%M:%S')} {one}", flush=True)
            if isinstance(one, Recovery):
                recoveries.append(one)
            else:
                findings.append(one)
            keep(kept, seed, (time.monotonic() - began) / 60, recoveries)
        keep(kept, seed, (time.monotonic() - began) / 60, recoveries)
        print(kept.read_text("utf-8"))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
