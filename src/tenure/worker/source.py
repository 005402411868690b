"""What a worker needs of the place where its jobs come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from tenure.jobs.redaction import Redaction
from tenure.jobs.work import ClaimRequest, Exchange, Report
from tenure.telemetry.tracing import Tracing


class WorkSource(Protocol):
    """The database beside the worker, or a `Client` of a server."""

    @property
    def waits(self) -> bool:
        """Whether a claim may be held until there is work (a long poll)."""

    @property
    def redaction(self) -> Redaction:
        """What the worker leaves out of its log."""

    @property
    def tracing(self) -> Tracing | None:
        """What makes a span for each attempt, if attempts are traced."""

    @property
    def exchanges(self) -> int:
        """How many exchanges at once keep the source busy, where claims are not held."""

    def exchange(self, reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        """Record reports, then lease jobs."""

    def heartbeat(self, leases: Sequence[tuple[str, str]], lease_seconds: float) -> set[str]:
        """Extend (job id, lease id) leases; return the ids of those still held. Any thread."""

    def on_work(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Call `notify`, from any thread, when there may be work; return what ends this."""
