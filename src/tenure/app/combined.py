"""Several applications that run as one, as `tenure worker --app a:app --app b:app`. Internal."""

from __future__ import annotations

from collections.abc import Sequence

from tenure.app.app import Tenure


def combined(apps: Sequence[Tenure], database: str | None = None) -> Tenure:
    """Return the first of `apps`, which from now on also runs the handlers of the others.

    With a `database`, all of them use that one: what their handlers enqueue goes there too.
    """
    first, *others = apps
    if database is not None:
        for app in apps:
            app.close()
            app.database = database
    for other in others:
        first.core.take_over(other.core)
    return first
