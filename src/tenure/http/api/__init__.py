"""The HTTP API: decode, one call on the application, encode. Nothing here decides about a job.

`table.py` lists every call, `dispatch.py` finds the one that is meant, `routing.py` reads requests
and writes answers, `jobs.py`, `leases.py` and `operations.py` hold the endpoints, `streams.py`
whatever waits, `openapi.py` the description. Errors are raised and become problems; what a conflict
says about legal moves comes with the exception, from the lifecycle's table.
"""

from __future__ import annotations

from tenure.app.app import Tenure
from tenure.http.api.dispatch import Dispatcher
from tenure.http.api.events import WorkNotifier
from tenure.http.api.routes import ROUTES
from tenure.jobs.redaction import Redaction

__all__ = ["OPEN_PATHS", "Dispatcher", "WorkNotifier", "dispatcher"]

OPEN_PATHS = tuple(route.path for route in ROUTES if not route.scopes)
"""What is answered without a token."""


def dispatcher(app: Tenure, notifier: WorkNotifier, redaction: Redaction) -> Dispatcher:
    """The whole API as an ASGI application."""
    return Dispatcher(ROUTES, app, notifier, redaction)
