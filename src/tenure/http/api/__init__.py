"""The HTTP API: decode, one call on the application, encode. Nothing here decides about a job.

`routes.py` lists every call. `call.py` finds the call of a request, reads it and has it answered.
`jobs.py`, `leases.py`, `bulk.py`, `operations.py` and `events.py` hold the endpoints, `openapi.py`
describes them. Errors are raised and become problems.
"""

from __future__ import annotations

from tenure.app.app import Tenure
from tenure.http.api.call import Dispatcher
from tenure.http.api.routes import ROUTES
from tenure.http.notifier import WorkNotifier
from tenure.jobs.redaction import Redaction

__all__ = ["OPEN_PATHS", "Dispatcher", "dispatcher"]

OPEN_PATHS = tuple(route.path for route in ROUTES if not route.scopes)
"""Paths that are answered without a token."""


def dispatcher(app: Tenure, notifier: WorkNotifier, redaction: Redaction) -> Dispatcher:
    """Return the whole API as an ASGI application."""
    return Dispatcher(ROUTES, app, notifier, redaction)
