"""One of many processes that write to one SQLite file as fast as they can.

    python -m tests.chaos.concurrent_writer URL LOG SECONDS

It adds, claims and completes jobs, and appends a line to LOG after each answer of the store. An
error that reaches the caller ends the process with 1.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from tenure.rules.jobs import CheckedJob
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.store import open_store
from tenure.values.ids import new_ids


def write(url: str, log: Path, seconds: float) -> None:
    """Write for so long; the log's last line is the longest that a caller waited, in seconds."""
    store = open_store(url)
    request = ClaimRequest(worker=log.stem, limit=20, lease_seconds=3_600)
    end = time.monotonic() + seconds
    longest = 0.0
    with log.open("a", buffering=1) as told:
        while time.monotonic() < end:
            began = time.monotonic()
            ids = new_ids(3)
            one = store.add([CheckedJob(id=ids[0], type="mail")])
            two = store.add([CheckedJob(id=id, type="mail") for id in ids[1:]])
            one.result()
            told.write(f"enqueued {ids[0]}\n")
            two.result()
            told.write("".join(f"enqueued {id}\n" for id in ids[1:]))
            leases = store.exchange([], request).result().leases
            told.write("".join(f"claimed {lease.lease_id}\n" for lease in leases))
            reports = [Report(lease.id, lease.lease_id, Outcome.COMPLETED) for lease in leases]
            if reports:
                store.exchange(reports, None).result()
                told.write("".join(f"completed {report.lease_id}\n" for report in reports))
            longest = max(longest, time.monotonic() - began)
        told.write(f"longest {longest:.3f}\n")
    store.close()


def read(logs: Iterable[Path]) -> dict[str, list[str]]:
    """What all logs say: the words of a line, first -> second. A torn last line is no answer."""
    said: dict[str, list[str]] = {"enqueued": [], "claimed": [], "completed": [], "longest": []}
    for log in logs:
        whole, _, _ = log.read_text().rpartition("\n") if log.exists() else ("", "", "")
        for line in whole.splitlines():
            word, value = line.split()
            said[word].append(value)
    return said


def complaints(url: str, logs: Iterable[Path]) -> list[str]:
    """What was acknowledged and is not there, and what is unsound."""
    said = read(logs)
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as plain:
        found = [row[0] for row in plain.execute("PRAGMA integrity_check") if row[0] != "ok"]
        known: dict[str, set[str]] = {}
        for event, job_id, lease in plain.execute(
            "SELECT event, job_id, lease_id FROM tenure_transition"
        ):
            known.setdefault(event, set()).add(job_id if event == "enqueued" else lease)
    for event in ("enqueued", "claimed", "completed"):
        missing = set(said[event]) - known.get(event, set())
        found += [f"{event} {it} is missing" for it in missing]
        if len(said[event]) != len(set(said[event])):
            found.append(f"{event} twice")
    store = open_store(url)
    found += [str(violation) for violation in store.read.violations(5)]
    store.close()
    return found


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
