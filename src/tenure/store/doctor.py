"""What `tenure doctor` asks a database: do the settings hold that Tenure's promises need?

Nothing is created or changed: a database that does not exist yet, or has an older schema, is
reported as such. `sqlite/doctor.py` and `postgres/doctor.py` read, and have the verdicts of their
engine; those of both are in `verdicts.py`.
"""

from __future__ import annotations

from tenure.errors import TenureError
from tenure.jobs.findings import Check, CheckResult


def check_store(url: str) -> list[Check]:
    """Return every check of the database at `url`. One that does not answer is a problem, too."""
    checks: list[Check] = []
    try:
        if url.startswith(("postgresql:", "postgres:")):
            from tenure.store.postgres.doctor import check_postgres

            checks.extend(check_postgres(url))
        else:
            from tenure.store.sqlite.doctor import check_sqlite

            checks.extend(check_sqlite(url))
    except TenureError as error:
        checks.append(Check("database", CheckResult.PROBLEM, "cannot be used", str(error)))
    return checks


def schema_version(url: str) -> int:
    """Return the version of the schema at `url`, 0 if there is none or nothing answers."""
    found = [check.found for check in check_store(url) if check.name == "schema"]
    return int(found[0]) if found and found[0].isdigit() else 0
