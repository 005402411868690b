"""Reserved names: types and queues that begin with `tenure.` belong to Tenure.

Only Tenure itself adds such jobs, and a claim that names no queues skips such queues.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tenure.errors import InvalidInput
from tenure.jobs.names import check_name, list_of_names

RESERVED = "tenure."


def serves(queues: Collection[str] | None, queue: str) -> bool:
    """Whether a claim of `queues`, or of None for any, takes jobs of `queue`."""
    return not queue.startswith(RESERVED) if queues is None else queue in queues


def check_open(name: str, path: str) -> str:
    """Return the name of a type or queue if users may use it; raises InvalidInput."""
    if name.startswith(RESERVED):
        raise InvalidInput(
            f"{name} is reserved: Tenure itself adds and runs the jobs of types and queues that "
            f"begin with {RESERVED}; choose another name",
            path=path,
        )
    return name


def check_queues(queues: Iterable[str] | None, path: str) -> tuple[str, ...] | None:
    """Return the queues that a user's worker may take from, None for any; raises InvalidInput."""
    if queues is None:
        return None
    names = list_of_names(queues, path)
    return tuple(check_open(check_name(name, "queue", path), path) for name in names)
