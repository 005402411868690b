"""The dashboard: pages for people, rendered here, over the same calls as the API.

`site.py` lists every page and answers requests, `visit.py` is one request with its form and its
answer, `session.py` the cookies. `overview.py`, `jobs.py`, `queues.py` and `bulk.py` hold the pages
and what their buttons do, `live.py` tells open pages that something moved, `glance.py`
reads once for all who look. `health.py`, `life.py`,
`machine.py`, `series.py` and `words.py` are pure: what is shown, computed from what was read. The
pages work without JavaScript; what stands in `static/` makes them live. Nothing here decides about
a job.
"""

from __future__ import annotations

from tenure.dashboard.session import session_token
from tenure.dashboard.site import OPEN_PATHS, Dashboard, serves

__all__ = ["OPEN_PATHS", "Dashboard", "serves", "session_token"]
