"""The verdicts of `tenure doctor` that both engines share: pure functions of what was read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime

from tenure.jobs.findings import Check, CheckResult
from tenure.store import migrate

Settings = Mapping[str, tuple[Collection[str], str]]
"""Setting -> the values with which the promises hold, and what to do about another one."""
MAX_CLOCK_DIFFERENCE = 1.0
"""Seconds; a smaller difference between callers' clocks and the store's does not matter."""


def schema(found: int, needed: int) -> Check:
    """Whether the schema is the one that this version of Tenure works with."""
    if found > needed:
        advice = f"this Tenure knows schemas up to {needed}: upgrade Tenure on this machine"
        return Check("schema", CheckResult.PROBLEM, str(found), advice)
    if found < needed:
        advice = f"version {needed} is made by `tenure migrate`, or by the next program that starts"
        return Check("schema", CheckResult.WARNING, str(found or "none yet"), advice)
    return Check("schema", CheckResult.OK, str(found))


def guards(present: Collection[str], engine: str) -> Check:
    """Whether every trigger that guards the jobs and the ledger is there and switched on."""
    expected = trigger_names(sql for _, sql in migrate.steps(engine))
    missing = sorted(expected - set(present))
    if missing:
        advice = (
            f"missing or switched off: {', '.join(missing)}. Illegal transitions are not refused. "
            "Find out who removed them, run `tenure verify`, restore the database from a backup "
            "or a dump of the schema"
        )
        return Check(
            "guards", CheckResult.PROBLEM, f"{len(expected) - len(missing)} triggers", advice
        )
    return Check("guards", CheckResult.OK, f"{len(expected)} triggers")


def trigger_names(scripts: Iterator[str]) -> set[str]:
    """Return the triggers that exist after the scripts have run."""
    names: set[str] = set()
    for script in scripts:
        for verb, name in re.findall(r"\b(CREATE|DROP) TRIGGER (?:IF EXISTS )?(\w+)", script):
            (names.add if verb == "CREATE" else names.discard)(name)
    return names


def clock(store: datetime, before: float, after: float) -> Check:
    """How far the store's clock is from this machine's, read (Unix seconds) around the answer."""
    shown = store.timestamp()
    difference = shown - min(max(shown, before), after)
    found = f"{difference:+.1f} s from this machine"
    if abs(difference) <= MAX_CLOCK_DIFFERENCE:
        return Check("clock", CheckResult.OK, found)
    advice = (
        "jobs run by the store's clock: a run_at computed on this machine comes that much off; "
        "synchronise both by NTP"
    )
    return Check("clock", CheckResult.WARNING, found, advice)


def setting(name: str, value: str, wanted: Settings) -> Check:
    """Whether a setting has a value with which the promises hold."""
    good, advice = wanted[name]
    if value in good:
        return Check(name, CheckResult.OK, value)
    return Check(name, CheckResult.PROBLEM, value, advice)


def newest_entry(seconds_ahead: float | None) -> Check:
    """Whether the ledger's last entry is of the past; None for an empty ledger."""
    if seconds_ahead is None or seconds_ahead <= MAX_CLOCK_DIFFERENCE:
        return Check("time", CheckResult.OK, "the newest transition is not of the future")
    advice = (
        "the store's clock was set back after that transition: older leases and retries wait "
        "until it gets there. Find out which time is right"
    )
    return Check(
        "time",
        CheckResult.WARNING,
        f"the newest transition is {seconds_ahead:.0f} s in the future",
        advice,
    )
