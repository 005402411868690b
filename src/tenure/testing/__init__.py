"""Run jobs in tests, on the real store, with a clock that moves.

With pytest there are two fixtures: define `tenure_app`, which returns your application, and take
`jobs`, the `Jobs` on a database for the test alone. In a Django project with pytest-django,
`tenure_app` is there, and `jobs` follows `db` and `transactional_db`.
"""

from tenure.testing.databases import inline, on, within
from tenure.testing.jobs import Jobs, context
from tenure.testing.runs import Drained, Run

__all__ = ["Drained", "Jobs", "Run", "context", "inline", "on", "within"]
