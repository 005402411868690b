"""What a worker beside the database works with: `Tenure.work_source()`. Internal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from tenure.app.core import Core
from tenure.jobs.redaction import Redaction
from tenure.jobs.work import ClaimRequest, Exchange, Report
from tenure.telemetry.tracing import Tracing


class StoreSource:
    """The `WorkSource` of workers that share a machine with, or reach, the database itself."""

    waits = False
    """Claims answer at once; `on_work` says when there may be work."""

    def __init__(self, core: Core) -> None:
        self._core = core

    @property
    def redaction(self) -> Redaction:
        """What the worker leaves out of its log."""
        return self._core.redaction

    @property
    def tracing(self) -> Tracing | None:
        """What makes a span for each attempt, if the application traces."""
        return self._core.tracing

    @property
    def exchanges(self) -> int:
        """How many exchanges at a time keep the store busy."""
        return self._core.store.exchanges

    def exchange(self, reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        """Report and claim in one transaction."""
        return self._core.store.exchange(reports, claim)

    def claim(self, request: ClaimRequest) -> Exchange:
        """Lease jobs for a worker."""
        return self.exchange((), request).result()

    def report(self, reports: Sequence[Report]) -> Exchange:
        """Record how attempts ended; a verdict for each."""
        return self.exchange(reports, None).result()

    def heartbeat(self, leases: Sequence[tuple[str, str]], lease_seconds: float) -> set[str]:
        """Extend (job id, lease id) leases; return the lease ids that are still held."""
        return self._core.store.renew(leases, lease_seconds)

    def on_work(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Call `notify` whenever there may be work; return the function that ends this."""
        return self._core.store.on_work(notify)
