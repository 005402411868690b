"""Count the modules of Tenure that a reader has to open to follow one call from end to end."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import tenure

ROOT = str(Path(tenure.__file__).parent) + "/"
ACCESSOR_LINES = 3
"""A module of which no more lines than these run only answers an accessor; it does not count."""


class Way:
    """The lines of Tenure that ran while it was recorded, by module, on every thread."""

    def __init__(self) -> None:
        self._recording = False
        self._lines: defaultdict[str, set[int]] = defaultdict(set)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what runs within the block, and nothing that was recorded before."""
        self._lines.clear()
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    @property
    def modules(self) -> dict[str, int]:
        """The modules that count, with the number of their lines that ran."""
        counted = {path: len(lines) for path, lines in self._lines.items()}
        return {path: lines for path, lines in counted.items() if lines > ACCESSOR_LINES}

    def trace(self, frame: FrameType, event: str, _argument: Any) -> Any:
        """Note a line; called by the interpreter."""
        code = frame.f_code
        if not code.co_filename.startswith(ROOT) or code.co_name == "<module>":
            return None
        if event == "line" and self._recording:
            self._lines[code.co_filename.removeprefix(ROOT)].add(frame.f_lineno)
        return self.trace


@contextmanager
def way_of_a_call() -> Iterator[Way]:
    """Trace this thread, and threads that start within the block. Open the application in it."""
    way = Way()
    before = sys.gettrace()
    threading.settrace(way.trace)
    sys.settrace(way.trace)
    try:
        yield way
    finally:
        sys.settrace(before)
        threading.settrace(before)  # type: ignore[arg-type]
