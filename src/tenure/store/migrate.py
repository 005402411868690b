"""Bring a database to this version's schema; several starters at once are safe.

The steps are SQL files, `migrations/NNNN_name.sql` for both engines and
`migrations/<engine>/NNNN_name.sql`. Files of one number are one step, in the order of their names.
Each step runs in one transaction with its number, under the engine's
lock. So a killed migration leaves nothing half done, and the next starter continues where it
stopped. Processes of the version before keep working: a step adds, and removes nothing they use.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import get_args

from tenure import failpoints
from tenure.errors import SchemaMismatch
from tenure.handlers.results import MAX_RESULT_BYTES
from tenure.lifecycle import AMENDABLE, DEFAULT_MAX_RETRIES, FIRST_EVENT, holds_sql, rest_sql
from tenure.rules import jobs, unique_keys
from tenure.rules.dependencies import met_sql
from tenure.rules.signals import MAX_LINK_LABEL
from tenure.rules.stats import BUCKETS
from tenure.store import constraints as guards
from tenure.store.constraints import MAX_LABEL_STORED
from tenure.values import durations, names, payload
from tenure.values.findings import Progress, no_progress
from tenure.values.names import MAX_REASON_LENGTH, MAX_TAG_LENGTH

log = logging.getLogger(__name__)

LONG = ("payload", "result", "state")
"""Columns of JSON whose size in bytes is limited."""

MAX_FOLLOWERS_OF_ONE = 1_000
"""Followers of one job that are counted in the statement that ends it."""
MAX_FOLLOWERS_AT_ONCE = 10_000
"""Followers in all that are counted in one statement, about."""


SPELLED = {
    "postgres": {
        "ix": "",
        "word": 'text COLLATE "C"',
        "id": "uuid",
        "time": "timestamptz",
        "whole": "bigint",
        "real": "double precision",
        "truth": "boolean",
        **{f"octets_of_{column}": f"octet_length({column})" for column in LONG},
        "partition_is_printable": r"partition !~ '[\x01-\x1f\x7f]'",
        "rows": "",
        "by_key": "",
        "half_full": "WITH (fillfactor = 50)",
        "nearly_empty": "WITH (fillfactor = 10)",
    },
    "sqlite": {
        "of": "tenure_",
        "ix": "tenure_",
        "word": "text",
        "id": "text",
        "time": "integer",
        "whole": "integer",
        "real": "real",
        "truth": "integer",
        **{f"octets_of_{column}": f"length(CAST({column} AS BLOB))" for column in LONG},
        "partition_is_printable": "partition NOT GLOB '*[' || char(1) || '-' || char(31)"
        " || char(127) || ']*'",
        "rows": "STRICT",
        **dict.fromkeys(("by_key", "half_full", "nearly_empty"), "STRICT, WITHOUT ROWID"),
    },
}
"""How each engine spells what is in braces in files for both: what the names of tables (`of`)
and of indexes begin with, types, and how a table is stored. A `word` is compared byte by byte."""


@functools.cache
def steps(engine: str) -> Sequence[tuple[int, str]]:
    """Return the migrations of an engine: (number, SQL text with placeholders), in order.

    They are read once: each database that is opened asks for the newest number.
    """
    from importlib.resources import files

    both = files("tenure.store.migrations")
    entries = (*both.iterdir(), *(both / engine).iterdir())
    scripts = sorted((one for one in entries if one.name.endswith(".sql")), key=attrgetter("name"))
    return tuple(
        (number, "\n".join(part.read_text("utf-8") for part in parts))
        for number, parts in groupby(scripts, lambda script: int(script.name.split("_")[0]))
    )


def generated(
    differs: str, clock: str, larger: str, old: str, new: str, values: Mapping[str, str]
) -> Mapping[str, str]:
    """Return what is generated of the schema, by placeholder.

    `values` are the conditions that are CHECK constraints beside those of the lifecycle.
    """
    entry = guards.ledger_values(old, new, clock, larger)
    return {
        "checks": guards.checks({**values, **guards.row_rules()}),
        "illegal_insert": guards.ILLEGAL_INSERT,
        "illegal_change": guards.illegal_change(differs),
        "illegal_setting": guards.illegal_setting(differs),
        "set_columns": guards.set_columns(),
        "amended": guards.amended(differs, old, new),
        "amendable": ", ".join(AMENDABLE),
        "at_rest": rest_sql(f"{new}."),
        "was_at_rest": rest_sql(f"{old}."),
        "job_at_rest": rest_sql("job."),
        "is_met": met_sql("d", new),
        "many_followers": str(MAX_FOLLOWERS_OF_ONE),
        "most_followers": str(MAX_FOLLOWERS_AT_ONCE),
        "held_key": holds_sql(f"{old}."),
        "holds_key": holds_sql(f"{new}."),
        "job_holds_key": holds_sql("job."),
        "untils": guards.quoted(*get_args(unique_keys.Until)),
        "max_locked_keys": str(unique_keys.MAX_LOCKED_KEYS),
        "illegal_delete": guards.ILLEGAL_DELETE,
        "first_event": FIRST_EVENT,
        "default_max_retries": str(DEFAULT_MAX_RETRIES),
        "max_tag": str(MAX_TAG_LENGTH),
        "max_reason": str(MAX_REASON_LENGTH),
        "settled": guards.SETTLED_SQL,
        # what an enqueue by SQL refuses, as one in Python does
        "name_pattern": names.NAME_PATTERN,
        "key_pattern": names.KEY_PATTERN,
        "reserved": names.RESERVED,
        "max_name": str(names.MAX_NAME_LENGTH),
        "max_tags": str(names.MAX_TAGS),
        "max_key": str(names.MAX_KEY_LENGTH),
        "max_partition": str(names.MAX_PARTITION_LENGTH),
        "max_payload": str(payload.MAX_PAYLOAD_BYTES),
        "max_result": str(MAX_RESULT_BYTES),
        "max_label": str(MAX_LABEL_STORED),
        "max_link_label": str(MAX_LINK_LABEL),
        "max_depth": str(payload.MAX_DEPTH),
        "max_priority": str(jobs.MAX_PRIORITY),
        "max_retries": str(jobs.MAX_RETRIES),
        "max_seconds": str(durations.MAX_SECONDS),
        "ledger_columns": ", ".join(entry),
        "ledger_values": ",\n        ".join(entry.values()),
    }


def buckets(type: str) -> str:
    """Return the columns that count times by `rules.stats.BUCKETS`."""
    return ", ".join(f"bucket_{n} {type} NOT NULL" for n in range(len(BUCKETS)))


def advice(version: int, needed: int) -> str:
    """Say what to do about a schema; "" about the one that is needed, and about one newer."""
    if version < needed:
        return "run `tenure migrate`, or let programs upgrade it with TENURE_MIGRATE=auto"
    return "" if version <= needed + 1 else "upgrade Tenure here, nothing was changed"


def check(version: int, needed: int, where: str) -> None:
    """Raise SchemaMismatch if the schema `version` does not fit; log if it is newer."""
    works = f"{where} has schema {version}, this Tenure works with {needed} and {needed + 1}"
    if flaw := advice(version, needed):
        raise SchemaMismatch(f"{works}: {flaw}")
    if version > needed:
        log.info("%s", works)


def pending(
    engine: str, version: int, progress: Progress = no_progress
) -> Iterator[tuple[int, str]]:
    """Yield the steps after `version`; before each, report how many are done."""
    wanted = [step for step in steps(engine) if step[0] > version]
    for done, (number, sql) in enumerate(wanted):
        progress(done, len(wanted), f"schema {number}")
        failpoints.hit("migrate.before_step")
        yield number, sql
        failpoints.hit("migrate.after_step")


def newest(engine: str) -> int:
    """Return the schema version that this code needs."""
    return steps(engine)[-1][0]
