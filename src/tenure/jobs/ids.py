"""Identifiers of jobs: UUIDs of version 7 (RFC 9562), so that ids sort by the time they were made.

The one rule: ids made by one process rise strictly, whatever the clock does.

It is kept by method 1 of RFC 9562 section 6.2, a counter of fixed length. The leading 60 free bits
are one number, the *stamp*: 48 bits of Unix milliseconds, then 12 bits of counter, which starts
each millisecond at a random value in the lower half of its range. The next stamp is the larger of
"now" and "the last one plus one": a full counter carries into the milliseconds, and a clock that
steps back is waited out. The other 62 bits come from the operating system's random source, no bit
twice: two processes, a parent and its forked child, or two machines do not make the same id, and
nobody guesses one. They are drawn in blocks, for each draw lets other threads run first.

This module stands at an edge: it reads the clock and draws chance itself.
"""

from __future__ import annotations

import os
import re
import threading
import time
from datetime import UTC, datetime, timedelta

from tenure.errors import InvalidInput

ID_PATTERN = "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
"""The canonical form, as JSON Schema wants it."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
COUNTER_BITS = 12
COUNTS = 1 << COUNTER_BITS
BLOCK_BYTES = 2_048
_SEED_MASK = (1 << COUNTER_BITS - 1) - 1  # the counter's top bit starts at zero: room to count

_is_canonical = re.compile(ID_PATTERN.strip("^$")).fullmatch
_VARIANTS = {f"{n:x}": "89ab"[n & 3] for n in range(16)}  # binary 10, then two random bits

_lock = threading.Lock()
_last = -1  # the newest stamp
_block = b""  # random bytes not used yet


def new_id() -> str:
    """A new identifier, larger than every one this process made before. Safe from any thread."""
    return new_ids(1)[0]


def new_ids(count: int) -> list[str]:
    """`count` new identifiers, rising; cheaper than as many calls of `new_id`."""
    if count < 1:
        return []
    chance = _chance(2 + 8 * count)
    first = _stamps(count, chance[:2])
    tails = chance[2:].hex()
    at = 0
    made: list[str] = []
    while len(made) < count:  # once, and once more for each millisecond that the counter carries
        moment, counter = divmod(first + len(made), COUNTS)
        head = f"{moment >> 16:08x}-{moment & 0xFFFF:04x}-7"
        for number in range(counter, min(counter + count - len(made), COUNTS)):
            variant = _VARIANTS[tails[at]]
            tail = f"{variant}{tails[at + 1 : at + 4]}-{tails[at + 4 : at + 16]}"
            made.append(f"{head}{number:03x}-{tail}")
            at += 16
    return made


def is_id(text: str) -> bool:
    """Whether `text` is a version 7 UUID in canonical form: lower case, hyphens, nothing else."""
    return _is_canonical(text) is not None


def check_id(value: object, path: str) -> str:
    """`value` itself if it is an id in canonical form; raises InvalidInput at `path` otherwise."""
    if isinstance(value, str) and is_id(value):
        return value
    raise InvalidInput(
        "not a job id; ids are version 7 UUIDs in lower case with hyphens, "
        "such as 0190163d-8694-739b-aea5-966c26f8ad90",
        path=path,
    )


def first_of(moment: datetime, shift: timedelta) -> str:
    """The smallest id that a clock which is ahead by `shift` can make from `moment` on."""
    millis = max((moment - EPOCH + shift) // timedelta(milliseconds=1), 0)
    stamp = f"{millis:012x}"
    return f"{stamp[:8]}-{stamp[8:]}-0000-0000-000000000000"


def millis(job_id: str) -> int:
    """When the id was made: Unix time in milliseconds, by the clock of the process that made it.

    Raises InvalidInput if `job_id` is not an id in canonical form.
    """
    check_id(job_id, "$.id")
    return int(job_id[:8] + job_id[9:13], 16)


def _stamps(count: int, seed: bytes) -> int:
    """Reserve `count` stamps in a row and return the first; `seed` is two random bytes."""
    global _last  # noqa: PLW0603 - the newest stamp is the process's, as the clock is
    with _lock:
        now = time.time_ns() // 1_000_000
        first = max(now << COUNTER_BITS | int.from_bytes(seed) & _SEED_MASK, _last + 1)
        _last = first + count - 1
    return first


def _chance(count: int) -> bytes:
    """`count` random bytes that nobody has had before."""
    global _block  # noqa: PLW0603
    with _lock:
        if len(_block) < count:
            _block = os.urandom(max(BLOCK_BYTES, count))
        chance, _block = _block[:count], _block[count:]
    return chance


def _part_from_parent() -> None:
    """In a forked child: the lock may have been held at that moment, the block is the parent's."""
    global _lock, _block  # noqa: PLW0603
    _lock = threading.Lock()
    _block = b""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_part_from_parent)
