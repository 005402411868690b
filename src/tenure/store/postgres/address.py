"""The schema that a URL of PostgreSQL names. Needs no driver."""

from __future__ import annotations

import re

from tenure.errors import InvalidInput

DEFAULT_SCHEMA = "tenure"

_is_schema = re.compile("[a-z_][a-z0-9_]{0,62}").fullmatch


def split_schema(url: str) -> tuple[str, str]:
    """Return the schema that a URL names, and the URL without it.

    Raises InvalidInput, without repeating the URL: it may hold a password.
    """
    address, mark, query = url.partition("?")
    parameters = query.split("&") if mark else []
    schemas = [p.removeprefix("schema=") for p in parameters if p.startswith("schema=")]
    schema = schemas[0] if schemas else DEFAULT_SCHEMA
    if len(schemas) > 1 or not _is_schema(schema) or schema.startswith("pg_"):
        raise InvalidInput(
            "name one schema of lower-case letters, digits and underscores (at most 63, not "
            "starting with a digit or pg_), as in postgresql://host/database?schema=jobs",
            path="schema",
        )
    rest = "&".join(p for p in parameters if not p.startswith("schema="))
    return schema, f"{address}?{rest}" if rest else address
