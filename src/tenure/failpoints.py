"""Named places in Tenure's own code where a test can kill, freeze or break this process.

They are armed by the environment only, when the process starts:

    TENURE_FAILPOINTS="claim.after_commit=kill; sweep.between_read_and_write=raise@3"

`kill` ends the process as `kill -9` does, `freeze` stops it until a SIGCONT, `raise`
raises `FailpointReached` there. `@3` means at the third time the place is reached; without it, the
first. Each acts once. Unarmed, a place costs one call that does nothing.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Mapping

ENVIRONMENT = "TENURE_FAILPOINTS"

WORKS = (
    *("enqueue", "claim", "report", "heartbeat", "sweep", "prune", "measure"),
    *("operator", "queue", "bulk", "webhook", "look", "schedule"),
    *("signal", "dependencies", "step"),
)
"""What a transaction can be about."""
NAMES = (
    *(f"{work}.before_commit" for work in WORKS),
    *(f"{work}.after_commit" for work in WORKS),
    "sweep.between_read_and_write",
    "prune.between_job_and_ledger",
    "measure.between_read_and_write",
    "bulk.between_jobs_and_cursor",
    "webhook.between_position_and_jobs",
    "schedule.between_jobs_and_cursor",
    "signal.between_signal_and_job",
    "dependencies.before_decide",
    "checkpoint.before",
    "checkpoint.after",
    "announce.before",
    "migrate.before_step",
    "migrate.after_step",
    "migrate.after_commit",
    "move.after_begin",
    "move.after_copy",
    "move.before_switch",
    "move.in_switch",
    "move.after_switch",
    "http.before_answer",
    "worker.before_start",
    "worker.before_report",
)
"""Every place there is."""

ACTIONS = ("kill", "freeze", "raise")
_armed_at = re.compile(rf"([a-z_.]+)=({'|'.join(ACTIONS)})(?:@([1-9][0-9]*))?").fullmatch


class FailpointReached(Exception):
    """Raised at an armed place; no code of Tenure expects it."""


def read(text: str) -> Mapping[str, tuple[str, int]]:
    """Name -> what happens, and at which visit; raises ValueError for what means nothing."""
    armed = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        match = _armed_at(part)
        if match is None or match[1] not in NAMES:
            raise ValueError(f"{ENVIRONMENT}: {part!r} is no failpoint=action; see NAMES, ACTIONS")
        armed[match[1]] = (match[2], int(match[3] or 1))
    return armed


ARMED = read(os.environ.get(ENVIRONMENT, ""))
_visits: Counter[str] = Counter()
_lock = threading.Lock()


def hit(name: str) -> None:
    """Do what is armed at this place, if anything is."""
    if not ARMED:
        return
    if name not in NAMES:
        raise ValueError(f"{name} is missing in failpoints.NAMES")
    action, visit = ARMED.get(name, ("", 0))
    with _lock:
        _visits[name] += 1
        if _visits[name] != visit:
            return
    if action == "raise":
        raise FailpointReached(name)
    # To this thread: another one might take a signal to the process while this one continues.
    number = signal.SIGKILL if action == "kill" else signal.SIGSTOP
    signal.pthread_kill(threading.get_ident(), number)
