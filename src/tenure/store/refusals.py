"""What the database refuses of several rows, while the other rows are written.

A trigger or a constraint that is not from Tenure may refuse a row, again each time. A duty that is
one transaction for many rows must not fail for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from tenure.errors import StoreUnavailable, TenureError
from tenure.store.protocol import Database, Trouble, answer_to

T = TypeVar("T")
R = TypeVar("R")


def unless_refused(
    db: Database, write: Callable[[Sequence[T]], R], some: Sequence[T]
) -> tuple[list[R], list[tuple[T, TenureError]]]:
    """Call `write` with all of `some`; where the database refuses that, with each half of them.

    Returns the answers, and each item that is refused even alone, with its error: nothing of it is
    written. The transaction must not be undone to an earlier savepoint afterwards.
    """
    db.savepoint()
    try:
        return [write(some)], []
    except Exception as error:
        if isinstance(error, TenureError) and not isinstance(error, StoreUnavailable):
            refusal = error
        elif db.trouble(error) is Trouble.REFUSED:
            refusal = answer_to(Trouble.REFUSED, error)
        else:
            raise
    db.undo_to_savepoint()
    if len(some) == 1:
        return [], [(some[0], refusal)]
    half = len(some) // 2
    answers, refused = unless_refused(db, write, some[:half])
    more = unless_refused(db, write, some[half:])
    return answers + more[0], refused + more[1]
