"""When a child process is replaced by a new one: limits of a handler with `process=True`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tenure.errors import InvalidInput
from tenure.jobs.enqueue import whole

MOST = 2**50
_UNITS = {"": 1, "k": 10**3, "Ki": 2**10, "M": 10**6, "Mi": 2**20, "G": 10**9, "Gi": 2**30}
_size = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?(k|Ki|M|Mi|G|Gi|)B")


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """After so many jobs, or if it has so many bytes of memory after one; None: no limit."""

    max_jobs: int | None = None
    max_memory: int | None = None


NO_LIMITS = ChildLimits()


def child_limits(max_jobs: Any, max_memory: Any, *, in_process: bool) -> ChildLimits:
    """Check the limits of a handler; raises InvalidInput."""
    if not in_process and (max_jobs is not None or max_memory is not None):
        raise InvalidInput("max_jobs and max_memory are limits of child processes: process=True")
    return ChildLimits(
        None if max_jobs is None else whole(max_jobs, 1, 10**9, "$.max_jobs"),
        None if max_memory is None else _bytes(max_memory, "$.max_memory"),
    )


def _bytes(value: Any, path: str) -> int:
    if isinstance(value, str):
        if (found := _size.fullmatch(value.strip())) is None:
            raise InvalidInput("write a size as a number of bytes, 500MB or 512MiB", path=path)
        value = int(float(found[1]) * _UNITS[found[2]])
    return whole(value, 1, MOST, path)
