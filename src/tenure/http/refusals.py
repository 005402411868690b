"""Which requests were refused: every one is counted, one a second is logged.

So a flood of guesses shows in the metrics and does not fill the log. The counts are those of this
process since its start.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping
from math import inf

from starlette.types import Scope

from tenure.jobs.text import shortened

log = logging.getLogger(__name__)

REASONS: Mapping[str, str] = {
    "unauthorized": "no valid token",
    "forbidden": "its token lacks the scope",
    "cross_site": "sent by a page of another site",
    "host_not_allowed": "its Host is not served here",
    "sign_in_failed": "signing in needs a valid token",
}
"""The codes of the errors that are counted, and what the log says of them."""
LOG_SECONDS = 1.0
MAX_PATH = 200
"""Characters of a path that are logged."""

_secret = re.compile(r"(/(?:signals|leases)/)[^/]+")


def loggable(path: str) -> str:
    """Return a path without one-use tokens and lease ids: who reads a log must not use them."""
    return _secret.sub(r"\1...", path)


class Refusals:
    """The refused requests of one server. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(REASONS, 0)
        self._logged_at = -inf
        self._not_logged = 0

    def counts(self) -> dict[str, int]:
        """Return how many requests were refused, by the code of the error."""
        with self._lock:
            return self._counts.copy()

    def note(self, scope: Scope, code: str, ended: str | None) -> None:
        """Count a refused request; log it unless another one was logged less than a second ago.

        `ended` is the name of the token that it brought, if that has expired or was revoked.
        """
        with self._lock:
            self._counts[code] += 1
            now = time.monotonic()
            if now - self._logged_at < LOG_SECONDS:
                self._not_logged += 1
                return
            self._logged_at = now
            not_logged, self._not_logged = self._not_logged, 0
        log.warning(
            "refused %s %s from %s: %s%s%s",
            scope["method"],
            shortened(loggable(scope["path"]), MAX_PATH),
            (scope.get("client") or ("an unknown address",))[0],
            REASONS[code],
            f"; its token {ended} is revoked or has expired" if ended else "",
            f"; {not_logged} more since the last line" if not_logged else "",
        )
