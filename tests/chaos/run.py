"""`make chaos`: the whole battery within a time budget, then everything at once until it is up.

Beside that, servers are sent bytes and requests at random.

    python -m tests.chaos.run [--seconds 600] [--seed N] [--soak | --cluster N | --graphs N]
        [--keep]

The seed is printed first and decides what chance decides; the figures are printed at the end. With
`--soak` only the last part runs, for as long as it is told: minutes or hours. With `--cluster N`
only a real cluster fails, N times in each way. With `--graphs N` only random graphs are played,
until each engine has had N jobs. `--keep` writes tests/chaos/last_run.json or last_cluster.json,
from which docs/reliability.md shows the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import conftest
from tests.conftest import UNTIL
from tests.support import effort, fault_counts

ROOT = Path(__file__).parents[2]
LAST_RUN = Path(__file__).with_name("last_run.json")
LAST_CLUSTER = Path(__file__).with_name("last_cluster.json")
SOAK_SHARE = 0.25
"""How much of the time everything runs at once, at least."""
SECONDS_PER_EFFORT = 120
"""`make test` gives the battery about so much."""


def main() -> int:
    """Run it; the exit code is pytest's or the soak's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--soak", action="store_true", help="only everything at once")
    parser.add_argument("--cluster", type=int, metavar="N", help="only N failovers of each kind")
    parser.add_argument("--graphs", type=int, metavar="N", help="only random graphs of N jobs")
    parser.add_argument("--keep", action="store_true", help="keep the figures for the docs")
    asked = parser.parse_args()
    if asked.cluster:
        return cluster(asked.cluster, asked.seed, keep=asked.keep)
    if asked.graphs:
        print(f"seed {asked.seed}, {asked.graphs:,} jobs", flush=True)
        return graphs(asked.graphs, asked.seed)
    print(f"seed {asked.seed}, {asked.seconds:.0f} s", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures"
        times = max(2, int(asked.seconds // SECONDS_PER_EFFORT))
        os.environ |= {
            fault_counts.ENVIRONMENT: str(figures),
            conftest.SEED: str(asked.seed),
            effort.VARIABLE: str(times),
            UNTIL: str(time.time() + (1 - SOAK_SHARE) * asked.seconds),
        }
        beside = [] if asked.soak else at_random(asked.seconds, asked.seed)
        failed, tests = battery() if beside else (0, "soak only")
        left = asked.seconds - (time.monotonic() - began)
        failed = soak(max(left, asked.seconds * SOAK_SHARE), asked.seed) or failed
        failed = max([process.wait() for process in beside], default=0) or failed
        sums = fault_counts.total(figures)
    width = max(map(len, sums))
    print("\n".join(f"{figure:<{width}}  {number:>9,}" for figure, number in sums.items()))
    print(f"seed {asked.seed}: {'FAILED' if failed else 'passed'}", flush=True)
    if asked.keep and not failed:
        minutes = round((time.monotonic() - began) / 60)
        machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
        kept = {
            "when": time.strftime("%Y-%m-%d"),
            "minutes": minutes,
            "seed": asked.seed,
            "machine": machine,
            "tests": tests,
            "figures": sums,
        }
        LAST_RUN.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    return failed


def battery() -> tuple[int, str]:
    """Every test that is marked as chaos or shows a scenario; exit code and pytest's last line."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "2",
        "-m",
        "chaos or scenario or full",
        "tests",
    ]
    told = ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            if re.search(r"\d+ passed", line):
                told = line.strip(" =\n")
    return running.returncode, told.partition(" in ")[0]


def at_random(seconds: float, seed: int) -> list[subprocess.Popen[bytes]]:
    """Start to send bytes and requests at random to servers, beside everything else."""
    given = str(seconds), str(seed)
    modules = ("tests.chaos.fuzz", "tests.chaos.misuse")
    return [subprocess.Popen([sys.executable, "-m", name, *given], cwd=ROOT) for name in modules]


def soak(seconds: float, seed: int) -> int:
    """Everything at once, on both engines; 0 if nothing was found wrong."""
    command = [sys.executable, "-m", "tests.chaos.soak", str(seconds), str(seed)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def cluster(failovers: int, seed: int, *, keep: bool) -> int:
    """So many failovers of each kind of a real cluster; 0 if nothing was found wrong."""
    command = [sys.executable, "-m", "tests.chaos.clustering", str(failovers), str(seed)]
    command += [str(LAST_CLUSTER)] if keep else []
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def graphs(jobs: int, seed: int) -> int:
    """Random graphs of so many jobs on each engine; 0 if all was as on the reference."""
    command = [sys.executable, "-m", "tests.model.many_graphs", str(jobs), str(seed)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
