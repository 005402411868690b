"""Which queues a caller may use. Pure.

The rights are patterns: the name of a queue, or its beginning and a `*`. None instead of patterns
means every queue. `Core` applies them to each call, `Dialect.in_queues` says the same in SQL.
"""

from __future__ import annotations

from collections.abc import Iterable

from tenure.errors import Forbidden, InvalidInput
from tenure.jobs.names import RESERVED, check_open, some_or_any

Patterns = tuple[str, ...]

MAX_PATTERNS = 100
ANY_REST = "*"


def check_patterns(given: Iterable[str] | None, path: str) -> Patterns | None:
    """Return valid patterns, each once, sorted; None for every queue. Raises InvalidInput.

    No pattern includes a queue of Tenure itself: its jobs hold events of every other queue.
    """
    patterns = some_or_any(given, "queue", path)
    if patterns is None:
        return None
    if len(patterns) > MAX_PATTERNS:
        raise InvalidInput(f"name at most {MAX_PATTERNS} queues", path=path)
    return tuple(sorted({_checked(pattern, path) for pattern in patterns}))


def _checked(pattern: str, path: str) -> str:
    if not pattern.endswith(ANY_REST):
        return check_open(pattern, "queue", path)
    beginning = pattern.removesuffix(ANY_REST)
    if RESERVED.startswith(beginning):
        raise InvalidInput(
            f"{pattern} would include the queues of Tenure itself, which begin with {RESERVED}: "
            "write more of the name before the *",
            path=path,
        )
    check_open(f"{beginning}x", "queue", path)  # a beginning may end with a dot
    return pattern


def includes(patterns: Patterns | None, queue: str) -> bool:
    return patterns is None or any(
        queue.startswith(each[:-1]) if each.endswith(ANY_REST) else queue == each
        for each in patterns
    )


def covers(patterns: Patterns | None, others: Patterns | None) -> bool:
    if patterns is None or others is None:
        return patterns is None
    return all(includes(patterns, each) for each in others)  # no name contains a *


def require(patterns: Patterns | None, queues: Iterable[str]) -> None:
    """Raise Forbidden if one of these queues is not among the patterns.

    It does not say which: it may be one that the caller did not name, such as that of a type.
    """
    if not all(includes(patterns, queue) for queue in queues):
        raise Forbidden(
            f"this token is for the queues {', '.join(patterns or ())} and for no other: name one "
            "of them as the queue (a job without one is in that of its type, or in `default`), or "
            "use another token"
        )


def own_key(queue: str, key: str) -> str:
    """Return an idempotency key as stored for a caller with rights to some queues.

    It counts within the queue alone, so that it says nothing about jobs of other queues. The space
    keeps it apart from every key of other callers.
    """
    return f"{queue} {key}"
