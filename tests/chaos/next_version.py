"""The schema of the next version, and a program that migrates to it.

    python -m tests.chaos.next_version URL this|next

It stands apart from its tests: they start it many times, and it needs nothing of pytest.
"""

from __future__ import annotations

import sys

from tenure.store import migrate, migrate_store

NEXT = {
    "sqlite": ("ALTER TABLE tenure_job ADD COLUMN extra TEXT", "CREATE TABLE tenure_extra (a)"),
    "postgres": (
        "ALTER TABLE {schema}.job ADD COLUMN extra text",
        "CREATE TABLE {schema}.extra ()",
    ),
}
"""Two more steps, as the next version might bring them."""


def longer(engine: str, really: object = migrate.steps) -> list[tuple[int, str]]:
    """The steps of the next version."""
    assert callable(really)
    known = really(engine)
    newest = known[-1][0]
    return [*known, *((newest + n, f"{sql};\n") for n, sql in enumerate(NEXT[engine], 1))]


def main() -> None:
    url, version = sys.argv[1:]
    if version == "next":
        migrate.steps = longer
    print(migrate_store(url))


if __name__ == "__main__":
    main()
