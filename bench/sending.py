"""Enqueueing: one by one from one caller or several, and in bulk. Every job must be there after."""

from __future__ import annotations

from bench.catalogue import Subject
from bench.processes import Failed, Setting, ask
from bench.stage import Figures, Stage, check_integrity

MOST = 10_000_000
MAX_IN_BULK = 1_000_000


def enqueue(stage: Stage, subject: Subject, *, callers: int) -> Figures:
    """Enqueue one by one, each call answered before its caller makes the next."""
    setting = stage.fresh(subject)
    found = ask(setting, "singly", callers=callers, seconds=stage.size.seconds, most=MOST)
    return _checked(stage, setting, found)


def enqueue_in_bulk(stage: Stage, subject: Subject) -> Figures:
    """Enqueue by calls of 1,000 jobs."""
    setting = stage.fresh(subject)
    return _checked(
        stage, setting, ask(setting, "bulk", jobs=MAX_IN_BULK, seconds=stage.size.seconds)
    )


def _checked(stage: Stage, setting: Setting, found: Figures) -> Figures:
    jobs = int(found["jobs"])
    left = stage.left(setting)
    if left != jobs:
        raise Failed(f"{jobs} jobs were enqueued and {left} are there")
    check_integrity(setting)
    return {"rate": found["rate"], "jobs": jobs}
