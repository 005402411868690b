"""How hard the tests try: `make test` does what shows a fault soon, `make chaos` all there is."""

from __future__ import annotations

import os

VARIABLE = "TENURE_CHAOS_EFFORT"
EFFORT = int(os.environ.get(VARIABLE, "1"))
"""How many times as much to do as in `make test`: 1 there, more in `make chaos`."""
EVERYTHING = EFFORT > 1
MANY_ROWS = 1_000_000 if EVERYTHING else 100_000
"""The rows of a table whose plans are looked at."""
