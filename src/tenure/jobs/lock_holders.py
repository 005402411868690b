"""Transactions of other programs that have jobs locked, in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from tenure.jobs.text import shortened, visible

MAX_NAME = 64
"""Characters of the name of a user or a program that a sentence has."""
MAX_HOLDERS = 3
"""Transactions that a sentence names."""


class LockHolder(Struct, frozen=True, kw_only=True):
    """A transaction that uses the table of jobs.

    `pid` is the number of its session, and `name` that of the program. A prepared transaction has
    no session: `pid` is None, and `name` its identifier. `state` and `since` are None if the
    database role may not read them. `is_sure` is False if it may be another one of those listed.
    """

    pid: int | None
    user: str
    name: str
    state: str | None
    since: datetime | None
    is_sure: bool = True

    def __str__(self) -> str:
        name, user = (visible(shortened(text, MAX_NAME)) for text in (self.name, self.user))
        since = "" if self.since is None else f" since {self.since:%Y-%m-%d %H:%M:%S} UTC"
        if self.pid is None:
            return f"the prepared transaction {name} of {user}, open{since}"
        if self.state is None and self.since is None:
            return f"session {self.pid} of {user} ({name}), of which this role may see no more"
        return f"session {self.pid} of {user} ({name}), {self.state or 'open'}{since}"

    @property
    def end(self) -> str:
        """The statement that ends it."""
        if self.pid is not None:
            return f"SELECT pg_terminate_backend({self.pid})"
        return "ROLLBACK PREPARED '{}'".format(visible(self.name).replace("'", "''"))


def named(holders: Sequence[LockHolder]) -> str:
    """Name transactions, each with the statement that ends it."""
    more = f"; and {len(holders) - MAX_HOLDERS:,} more" if len(holders) > MAX_HOLDERS else ""
    return "; ".join(f"{one}, end it with {one.end}" for one in holders[:MAX_HOLDERS]) + more


def locked_text(holders: Sequence[LockHolder]) -> str:
    """Say who has a job locked; without holders, the caller may not see who."""
    effect = "no worker or sweep takes it, and changes of it wait"
    if not holders:
        return f"Another transaction of the database has it locked: {effect} until that ends."
    if all(one.is_sure for one in holders):
        return f"Another transaction has it locked, so {effect}: {named(holders)}."
    return f"A transaction has it locked, so {effect}. It is one of these: {named(holders)}."
