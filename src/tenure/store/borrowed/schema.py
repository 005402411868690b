"""The schema on a caller's connection: which version is there, and the steps to the newest one."""

from __future__ import annotations

from tenure.store import migrate
from tenure.store.borrowed.drivers import Ask, Steps
from tenure.store.postgres.address import split_schema

EXISTS = {
    "postgres": "SELECT 1 WHERE to_regclass('{s}schema_version') IS NOT NULL",
    "sqlite": "SELECT 1 FROM sqlite_schema WHERE name = 'tenure_schema'",
}
VERSION = {
    "postgres": "SELECT max(version) FROM {s}schema_version",
    "sqlite": "SELECT max(version) FROM tenure_schema",
}


def version(engine: str) -> Steps[int]:
    """Return the version of the schema; 0 where there is none."""
    if not (yield Ask(EXISTS[engine])):
        return 0
    ((found,),) = yield Ask(VERSION[engine])
    return int(found)


def upgrade(engine: str, url: str) -> Steps[tuple[int, int]]:
    """Create or upgrade the schema in the caller's transaction; return its versions before, after.

    Raises SchemaMismatch for a newer one.
    """
    if engine == "postgres":  # not imported before: it needs psycopg
        from tenure.store.postgres import schema as postgres_schema

        schema = split_schema(url)[0]
        yield Ask(postgres_schema.LOCK.replace("%s", f"'{schema}'"))
    before, newest = (yield from version(engine)), migrate.newest(engine)
    after = max(before, newest)
    migrate.check(after, newest, "the database")
    if engine == "postgres":
        yield Ask(postgres_schema.script(url, before, begin=False))
    else:
        from tenure.store.sqlite import schema as sqlite_schema

        for statement in sqlite_schema.statements(sqlite_schema.script(before, begin=False)):
            yield Ask(statement)
    return before, after
