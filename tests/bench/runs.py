"""A made-up run of the bench, for tests of what is made of it."""

from __future__ import annotations

import dataclasses

from bench import plan
from bench.catalogue import SUBJECTS
from bench.results import Result, Run

BY_NAME = {subject.name: subject for subject in SUBJECTS}
MACHINE = {
    "date": "2026-01-01",
    "cpus": 2,
    "cpu": "a processor",
    "memory_gb": 8,
    "system": "Linux",
    "python": "3.11",
    "versions": {"tenure": "1.0"},
    "pythons": {"pgqueuer": "3.11"},
    "engines": {"postgres": {"version": "PostgreSQL", "settings": "defaults"}},
}


def run_of(**rates: list[float]) -> Run:
    """A run in which these queues drained at these rates; `_` stands for `-` in names."""
    results = [
        Result("drain-1", name.replace("_", "-"), [{"rate": rate} for rate in values])
        for name, values in rates.items()
    ]
    return Run("full", dict(MACHINE), dataclasses.asdict(plan.FULL), results=results)
