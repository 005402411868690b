"""The dashboard: pages for people, rendered on the server, over the same calls as the API.

`site.py` lists every page, `request.py` is one request and its cookies. The files of the nouns and
`forms.py` hold the pages and their actions. `push.py` reads once for all viewers and notifies open
pages of changes. `format.py` and `machine.py` are pure, and so are the parts of other files on
health, history and the picture of a graph: they compute what is shown. The pages work without
JavaScript; the scripts in `static/` make them live.
"""

from __future__ import annotations

from tenure.dashboard.request import session_secret
from tenure.dashboard.site import OPEN_PATHS, Dashboard, serves

__all__ = ["OPEN_PATHS", "Dashboard", "serves", "session_secret"]
