"""Run jobs in tests, on the real store, with a clock that moves.

With pytest there are two fixtures: define `tenure_app`, which returns your application, and take
`jobs`, the `Jobs` on a database for the test alone. In a Django project with pytest-django,
`tenure_app` is there, and `jobs` follows `db` and `transactional_db`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenure.testing.databases import inline, on, within
    from tenure.testing.jobs import Jobs, context
    from tenure.testing.runs import Drained, Run

__all__ = ["Drained", "Jobs", "Run", "context", "inline", "on", "within"]

_HOMES = {
    "Drained": "runs",
    "Run": "runs",
    "Jobs": "jobs",
    "context": "jobs",
    **dict.fromkeys(("inline", "on", "within"), "databases"),
}


def __getattr__(name: str) -> object:
    """Import a name when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
