"""A store that producers and workers reach over a network, through the proxy.

The proxy is in front of PostgreSQL, or in front of our HTTP API on either database. What a test
checks it reads directly from the store, past the proxy.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tenure import Job, Tenure
from tenure.client import Client
from tenure.store.postgres.session import PREPARED
from tests.chaos import checker
from tests.chaos.history import History, Recorded, record_handlers
from tests.support.http import ServerProcess
from tests.support.proxy import Proxy
from tests.support.waiting import RECOVERY_SECONDS
from tests.support.workers import wait_until_completed

REMOTE_STORES = (
    "postgres",
    "http+sqlite",
    pytest.param("http+postgres", marks=[pytest.mark.full, pytest.mark.postgres]),
)
"""The last one combines the other two, so only `make chaos` runs it."""
COMMIT = b"Q\0\0\0\x0bCOMMIT\0"
"""The message of a commit on its own, as at the end of every transaction of several statements."""


@dataclass
class RemoteStore:
    """A store behind the proxy."""

    kind: str
    direct: Tenure  # not through the proxy; handlers are registered here
    source: Any  # through the proxy, recorded: for producers and workers
    proxy: Proxy
    folder: Path
    server: ServerProcess | None = None
    recoveries: list[float] = field(default_factory=list)

    @property
    def is_http(self) -> bool:
        return self.server is not None

    def lose_answers_to_enqueue(self) -> None:
        """The next enqueue of one job ends with an unknown outcome."""
        if self.is_http:
            self.proxy.drop_answers(b"POST /jobs ")
        else:  # the store asks three times, which is harmless: the id is the client's
            self.proxy.drop_answers(b"\x00" + PREPARED + b"\x00", times=3)  # not its preparation

    def lose_answers_to_report(self, lease_id: str, *, adds_jobs: bool = False) -> None:
        """The next report on a lease is recorded, and its sender gets no answer."""
        # One that adds jobs takes several statements: until their commit nothing is recorded.
        statement = COMMIT if adds_jobs else UUID(lease_id).bytes
        self.proxy.drop_answers(b"POST /reports " if self.is_http else statement)

    def lose_answers_to_claim(self) -> None:
        """The next claim is made, and the worker does not learn of it."""
        self.proxy.drop_answers(b"POST /leases " if self.is_http else COMMIT)

    def recovered(self, job: Job) -> None:
        """A job that was added when the outage was over is done, and soon."""
        began = time.monotonic()
        wait_until_completed(self.direct, job)
        took = time.monotonic() - began
        assert took < RECOVERY_SECONDS, f"it took {took:.1f} s to recover"

    def check(self, *, drained: bool = True) -> None:
        """The last step: the records against the store, and the store against itself."""
        assert checker.check(self.folder, self.direct.database, drained=drained) == []
        assert self.direct.verify() == []


@contextlib.contextmanager
def remote_store(
    kind: str, database: str, folder: Path, *, timeout: float = 30.0
) -> Iterator[RemoteStore]:
    """Open one of REMOTE_STORES; an HTTP client waits `timeout` seconds for an answer."""
    with contextlib.ExitStack() as stack:
        straight = stack.enter_context(Tenure(database))
        history = History(folder / "record", "test")
        record_handlers(straight, history)
        server = None
        source: Any
        if kind == "postgres":
            proxy = stack.enter_context(Proxy(database))
            source = Tenure(f"{proxy.url_of(database)}&connect_timeout=2")
        else:
            server = stack.enter_context(ServerProcess(database))
            proxy = stack.enter_context(Proxy(server.url))
            source = Client(proxy.url_of(server.url), timeout=timeout)
        source = stack.enter_context(source)
        yield RemoteStore(
            kind, straight, Recorded(source, history), proxy, folder / "record", server
        )
