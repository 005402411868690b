"""What a run of the battery did to Tenure, and what came of it, for docs/reliability.md.

Tests count what they do; `make chaos` names the file in TENURE_CHAOS_TALLY, adds everything up and
prints it. Without it nothing is written.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

ENVIRONMENT = "TENURE_CHAOS_TALLY"
FIGURES = (
    "processes killed",
    "processes frozen",
    "answers dropped",
    "connections cut",
    "database crashes",
    "failovers",
    "power cuts",
    "full disks and I/O errors",
    "jobs accepted",
    "jobs lost",
    "jobs run beyond their limit",
    "attempts settled twice",
)


def count(figure: str, number: int = 1) -> None:
    """Add to one of FIGURES."""
    if figure not in FIGURES:
        raise ValueError(f"{figure!r} is none of FIGURES")
    if path := os.environ.get(ENVIRONMENT):
        with Path(path).open("a", encoding="utf-8") as file:  # one short write: lines stay whole
            file.write(json.dumps([figure, number]) + "\n")


def total(path: Path) -> dict[str, int]:
    """Every figure, added up."""
    sums: Counter[str] = Counter()
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        figure, number = json.loads(line)
        sums[figure] += number
    return {figure: sums[figure] for figure in FIGURES}
