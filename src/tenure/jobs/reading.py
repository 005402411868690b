"""What has to be done before several threads read values of a type."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import cache
from typing import Any

import msgspec

_learning = threading.Lock()


def learn(kind: Any) -> None:
    """Prepare a type that values will be read as. Call it first where threads read.

    msgspec 0.22 learns a type from its first value, lets other threads in meanwhile, and crashes if
    two threads do so at once.
    """
    with suppress(TypeError):  # it has no JSON form, as who reads it will say, or no hash
        _learn(kind)


@cache
def _learn(kind: Any) -> None:
    with _learning:
        msgspec.json.Decoder(kind)
