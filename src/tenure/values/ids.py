"""Identifiers of jobs: UUIDs of version 7 (RFC 9562), so that ids sort by the time they were made.

Ids made by one process rise strictly, whatever the clock does. This is method 1 of RFC 9562 section
6.2, a counter of fixed length. The leading 60 free bits are one number, the *stamp*: 48 bits of
Unix milliseconds, then 12 bits of counter, which starts each millisecond at a random value in the
lower half of its range. The next stamp is the larger of "now" and "the last one plus one": a full
counter carries into the milliseconds, and the ids do not follow a clock that steps back.

The other 62 bits come from the operating system's random source, no bit twice: two processes, a
parent and its forked child, or two machines do not make the same id, and an id cannot be guessed.
They are drawn in blocks, because each draw lets other threads run first.
"""

from __future__ import annotations

import os
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from tenure import forks
from tenure.errors import InvalidInput

ID_PATTERN = "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
"""The canonical form, as a pattern of JSON Schema."""

BEFORE_ALL = "00000000-0000-0000-0000-000000000000"
AFTER_ALL = "ffffffff-ffff-ffff-ffff-ffffffffffff"
"""No job has one of these, nor one outside of them."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
COUNTER_BITS = 12
BLOCK_BYTES = 2_048
_SEED_MASK = (1 << COUNTER_BITS - 1) - 1  # the counter's top bit starts at zero: room to count

_is_canonical = re.compile(ID_PATTERN.strip("^$")).fullmatch
_VARIANTS = {f"{n:x}": "89ab"[n & 3] for n in range(16)}  # binary 10, then two random bits

_lock = threading.Lock()
_last = -1  # the newest stamp
_block = b""  # random bytes not used yet


def new_id() -> str:
    """Return a new id, larger than every id that this process made before. Thread-safe."""
    return new_ids(1)[0]


def new_ids(count: int) -> list[str]:
    """Return `count` new ids, rising; cheaper than as many calls of `new_id`."""
    if count < 1:
        return []
    chance = _chance(2 + 8 * count)
    first = _stamps(count, chance[:2])
    tails = chance[2:].hex("-", 8).split("-")
    made: list[str] = []
    for number, tail in enumerate(tails, first):
        stamp = f"{number:015x}"  # 12 digits of milliseconds, 3 of the counter
        made.append(
            f"{stamp[:8]}-{stamp[8:12]}-7{stamp[12:]}-{_VARIANTS[tail[0]]}{tail[1:4]}-{tail[4:]}"
        )
    return made


def is_id(text: str) -> bool:
    """Return whether `text` is a version 7 UUID in canonical form: lower case, hyphens.

    Raises InvalidInput for what is no text: "no such job" would be wrong about a `Job`.
    """
    if not isinstance(text, str):
        raise InvalidInput(f"give an id, such as job.id, not a value of type {type(text).__name__}")
    return _is_canonical(text) is not None


def id_of(job: Any) -> str:
    """Return the id of a job or handle; what is none of these is an id, or `is_id` refuses it."""
    found: str = getattr(job, "id", job)
    return found


def check_id(value: object, path: str) -> str:
    """Return `value` if it is an id in canonical form; raises InvalidInput otherwise."""
    if isinstance(value, str) and is_id(value):
        return value
    raise InvalidInput(
        "not a job id; ids are version 7 UUIDs in lower case with hyphens, "
        "such as 0190163d-8694-739b-aea5-966c26f8ad90",
        path=path,
    )


def first_of(moment: datetime, shift: timedelta) -> str:
    """Return the smallest id that a clock ahead by `shift` can make from `moment` on."""
    millis = max((moment - EPOCH + shift) // timedelta(milliseconds=1), 0)
    stamp = f"{millis:012x}"
    return f"{stamp[:8]}-{stamp[8:]}-0000-0000-000000000000"


def _stamps(count: int, seed: bytes) -> int:
    """Reserve `count` stamps in a row and return the first; `seed` is two random bytes."""
    global _last  # noqa: PLW0603 - the newest stamp is the process's, as the clock is
    with _lock:
        now = time.time_ns() // 1_000_000
        first = max(now << COUNTER_BITS | int.from_bytes(seed) & _SEED_MASK, _last + 1)
        _last = first + count - 1
    return first


def _chance(count: int) -> bytes:
    """Return `count` random bytes, each used once."""
    global _block  # noqa: PLW0603
    if os.getpid() != forks.pid:
        forks.notice()
    with _lock:
        if len(_block) < count:
            _block = os.urandom(max(BLOCK_BYTES, count))
        chance, _block = _block[:count], _block[count:]
    return chance


def _part_from_parent() -> None:
    """Start over in a forked child: the lock may be held, and the block is the parent's."""
    global _lock, _block  # noqa: PLW0603
    _lock = threading.Lock()
    _block = b""


forks.in_child(_part_from_parent)
