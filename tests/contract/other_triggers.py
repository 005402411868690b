"""Triggers on the jobs that are not from Tenure."""

from __future__ import annotations

from contextlib import closing

from tests.support.raw_sql import RawSql


def add_trigger(url: str, moment: str, condition: str, *, drops: bool = False) -> None:
    """Add a trigger to the jobs that refuses the rows of a condition, or drops them unsaid."""
    with closing(RawSql(url)) as sql:
        if sql.engine == "postgres":
            detail = "USING DETAIL = coalesce(new.payload, old.payload)"
            refusal = f"RAISE EXCEPTION 'no tenant 12' {detail}"
            body = f"BEGIN {'RETURN NULL' if drops else refusal}; END"
            sql.run(f"CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")
            act = f"FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION act()"
        else:
            refusal = "IGNORE" if drops else "ABORT, 'no tenant 12'"
            act = f"WHEN ({condition}) BEGIN SELECT raise({refusal}); END"
        sql.run(f"CREATE TRIGGER another {moment} ON {{job}} {act}")


def drop_trigger(url: str) -> None:
    """Remove it."""
    with closing(RawSql(url)) as sql:
        sql.run(f"DROP TRIGGER another{' ON {job}' if sql.engine == 'postgres' else ''}")
