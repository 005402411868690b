"""What `tenure doctor` asks a database: do the settings hold that Tenure's promises need?

Nothing is created or changed: a database that does not exist yet, or has an older schema, is
reported as such. `sqlite/doctor.py` and `postgres/doctor.py` read, and have the verdicts of their
engine. Those of both are here: pure functions of what was read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime

from tenure.errors import TenureError
from tenure.jobs.findings import Check, CheckResult
from tenure.store import is_sqlite, migrate

Settings = Mapping[str, tuple[Collection[str], str]]
"""Setting -> the values with which the promises hold, and what to do about another one."""
MAX_CLOCK_DIFFERENCE = 1.0
"""Seconds; a smaller difference between callers' clocks and the store's does not matter."""


def check_store(url: str) -> list[Check]:
    """Return every check of the database at `url`. One that does not answer is a problem, too."""
    checks: list[Check] = []
    try:
        if is_sqlite(url):
            from tenure.store.sqlite.doctor import check_sqlite

            checks.extend(check_sqlite(url))
        else:
            from tenure.store.postgres.doctor import check_postgres

            checks.extend(check_postgres(url))
    except TenureError as error:
        checks.append(problem("database", "cannot be used", str(error)))
    return checks


def schema_version(url: str) -> int:
    """Return the version of the schema at `url`, 0 if there is none or nothing answers."""
    found = [check.found for check in check_store(url) if check.name == "schema"]
    return int(found[0]) if found and found[0].isdigit() else 0


def ok(name: str, found: str) -> Check:
    return Check(name, CheckResult.OK, found)


def problem(name: str, found: str, advice: str) -> Check:
    """A check that is a problem if there is advice, otherwise in order."""
    return Check(name, CheckResult.PROBLEM if advice else CheckResult.OK, found, advice)


def warning(name: str, found: str, advice: str) -> Check:
    """A check that is a warning if there is advice, otherwise in order."""
    return Check(name, CheckResult.WARNING if advice else CheckResult.OK, found, advice)


def schema(found: int, needed: int) -> Check:
    """Whether the schema is the one that this version of Tenure works with."""
    if found > needed:
        advice = f"this Tenure knows schemas up to {needed}: upgrade Tenure on this machine"
        return problem("schema", str(found), advice)
    advice = f"version {needed} is made by `tenure migrate`, or by the next program that starts"
    return warning("schema", str(found or "none yet"), advice if found < needed else "")


def guards(present: Collection[str], engine: str) -> Check:
    """Whether every trigger that guards the jobs and the ledger is there and switched on."""
    expected = trigger_names(sql for _, sql in migrate.steps(engine))
    missing = sorted(expected - set(present))
    advice = (
        f"missing or switched off: {', '.join(missing)}. Illegal transitions are not refused. "
        "Find out who removed them, run `tenure verify`, restore the database from a backup "
        "or a dump of the schema"
    )
    there = f"{len(expected) - len(missing)} triggers"
    return problem("guards", there, advice if missing else "")


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
    advice = (
        "jobs run by the store's clock: a run_at computed on this machine comes that much off; "
        "synchronise both by NTP"
    )
    found = f"{difference:+.1f} s from this machine"
    return warning("clock", found, advice if abs(difference) > MAX_CLOCK_DIFFERENCE else "")


def setting(name: str, value: str, wanted: Settings) -> Check:
    """Whether a setting has a value with which the promises hold."""
    good, advice = wanted[name]
    return problem(name, value, "" if value in good else advice)


def newest_entry(seconds_ahead: float | None) -> Check:
    """Whether the ledger's last entry is of the past; None for an empty ledger."""
    if seconds_ahead is None or seconds_ahead <= MAX_CLOCK_DIFFERENCE:
        return ok("time", "the newest transition is not of the future")
    advice = (
        "the store's clock was set back after that transition: older leases and retries wait "
        "until it gets there. Find out which time is right"
    )
    found = f"the newest transition is {seconds_ahead:.0f} s in the future"
    return warning("time", found, advice)
