"""A cache that counts how often it is closed."""

from typing import Any

from django.core.cache.backends.locmem import LocMemCache

closed: list[str] = []
"""One entry for each time, in this process."""


class Counted(LocMemCache):
    """Django's cache in memory."""

    def close(self, **_: Any) -> None:
        """Note that the cache is closed, as it is after a request."""
        closed.append("closed")
