"""Writes what the handlers of a worker say of their progress and state, together, once a second."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from tenure.errors import LeaseLost
from tenure.handlers.results import error_text
from tenure.rules.reports import Lease, WorkSource
from tenure.rules.steps import MAX_MESSAGE, Notes, StepCall
from tenure.telemetry.logs import Repeats

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0

NOTHING = Notes()
Noted = dict[str, tuple[str, Notes]]
"""By lease id: the job's id, and what is not known to be written."""


class NoteWriter:
    """Keeps the latest notes of each attempt until they are written, by a thread or by a report."""

    def __init__(self, source: WorkSource) -> None:
        self.is_used = False
        self.source = source
        self._lock = threading.Lock()
        self._latest: Noted = {}
        self._writing: Noted = {}
        self._asked = threading.Event()
        self._end = threading.Event()
        self._repeats = Repeats()

    def note(self, lease: Lease, notes: Notes) -> None:
        """Keep the notes of an attempt. Handlers call this at any rate, from any thread."""
        with self._lock:
            _, before = self._latest.get(lease.lease_id, ("", NOTHING))
            self._latest[lease.lease_id] = lease.id, _merged(before, notes)
            if not self.is_used:
                self.is_used = True
                with suppress(RuntimeError):  # no thread; reports still carry it
                    threading.Thread(None, self._run, "tenure-notes", daemon=True).start()
        self._asked.set()

    def take(self, lease_id: str) -> Notes | None:
        """Return what is not known to be written of an attempt that ends."""
        with self._lock:
            _, before = self._writing.pop(lease_id, ("", NOTHING))
            _, after = self._latest.pop(lease_id, ("", NOTHING))
        found = _merged(before, after)
        return None if found == NOTHING else storable(found)

    def stop(self) -> None:
        self._end.set()
        self._asked.set()

    def _run(self) -> None:
        while self._asked.wait() and not self._end.is_set():
            self._asked.clear()
            with self._lock:
                self._writing, self._latest = self._latest, {}
                noted = [(id, lease, storable(n)) for lease, (id, n) in self._writing.items()]
            try:
                self._write(noted)
            except Exception as error:
                if self._repeats.is_due(error):
                    log.info("notes could not be written, trying again: %s", error)
                with self._lock:
                    for lease, (id, before) in self._writing.items():
                        _, after = self._latest.get(lease, ("", NOTHING))
                        self._latest[lease] = id, _merged(before, after)
                self._asked.set()
            with self._lock:
                self._writing = {}
            self._end.wait(PAUSE_SECONDS)

    def _write(self, noted: Sequence[tuple[str, str, Notes]]) -> None:
        states = [self.source.ask(id, lease, n.state) for id, lease, n in noted if n.state]
        if entries := [(id, lease, n.progress) for id, lease, n in noted if n.progress]:
            self.source.record_progress(entries)
        for future in states:
            with suppress(LeaseLost):
                future.result()


class AttemptSource:
    """Where the notes and steps of one attempt go: to the source of its worker."""

    __slots__ = ("_lease", "_writer")

    def __init__(self, lease: Lease, writer: NoteWriter) -> None:
        self._lease = lease
        self._writer = writer

    def note(self, notes: Notes) -> None:
        self._writer.note(self._lease, notes)

    def ask(self, call: StepCall) -> Future[Any]:
        return self._writer.source.ask(self._lease.id, self._lease.lease_id, call)


def _merged(before: Notes, after: Notes) -> Notes:
    return Notes(after.progress or before.progress, after.state or before.state)


def storable(notes: Notes) -> Notes:
    """Return notes with a message that can be stored."""
    if (progress := notes.progress) is None or not progress.message:
        return notes
    message = error_text(progress.message[:MAX_MESSAGE])[:MAX_MESSAGE]
    return replace(notes, progress=replace(progress, message=message))
