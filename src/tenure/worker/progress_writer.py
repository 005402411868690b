"""Writes what the handlers of a worker say of their progress, together and once a second."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

from msgspec.structs import replace

from tenure.jobs.progress import MAX_MESSAGE, JobProgress
from tenure.jobs.results import error_text
from tenure.jobs.work import Lease, WorkSource

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0


class ProgressWriter:
    """Keeps the latest progress of each attempt until it is written, by a thread or by a report."""

    def __init__(self, source: WorkSource) -> None:
        self.is_used = False
        self._source = source
        self._lock = threading.Lock()
        self._latest: dict[str, tuple[str, JobProgress]] = {}  # by lease id, with the job's
        self._writing: dict[str, tuple[str, JobProgress]] = {}
        self._asked = threading.Event()
        self._end = threading.Event()

    def note(self, lease: Lease, progress: JobProgress) -> None:
        """Keep the progress of an attempt. Handlers call this at any rate, from any thread."""
        with self._lock:
            self._latest[lease.lease_id] = lease.id, progress
            if not self.is_used:
                self.is_used = True
                with suppress(RuntimeError):  # no thread; reports carry it all the same
                    threading.Thread(None, self._run, "tenure-progress", daemon=True).start()
        self._asked.set()

    def take(self, lease_id: str) -> JobProgress | None:
        """Return what is not known to be written of an attempt that ends."""
        with self._lock:
            before = self._writing.pop(lease_id, None)
            found = self._latest.pop(lease_id, before)
        return found and storable(found[1])

    def stop(self) -> None:
        """Write nothing any more."""
        self._end.set()
        self._asked.set()

    def _run(self) -> None:
        while self._asked.wait() and not self._end.is_set():
            self._asked.clear()
            with self._lock:
                self._writing, self._latest = self._latest, {}
                entries = [(id, lease, storable(p)) for lease, (id, p) in self._writing.items()]
            try:
                if entries:
                    self._source.record_progress(entries)
            except Exception as error:
                log.info("progress could not be written, trying again: %s", error)
                with self._lock:
                    self._latest = {**self._writing, **self._latest}
                self._asked.set()
            with self._lock:
                self._writing = {}
            self._end.wait(PAUSE_SECONDS)


def storable(progress: JobProgress) -> JobProgress:
    """Return progress with a message that can be stored."""
    message = progress.message and error_text(progress.message[:MAX_MESSAGE])[:MAX_MESSAGE]
    return replace(progress, message=message)
