"""The disk under SQLite fails at its n-th call, for every n, and no acknowledged job suffers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.chaos import disk
from tests.support import fault_counts
from tests.support.programs import run

ROOT = Path(__file__).parents[2]
STEPS = {"write": 17, "sync": 5, "truncate": 1, "map": 1, "open": 2}
"""In `make test` every so many-th call fails; in `make chaos` each."""


@pytest.mark.chaos
@pytest.mark.scenario(48)
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not disk.available(), reason="this Python hides its SQLite: use one of a distribution"
)
@pytest.mark.parametrize("how", ["once", "for-good"])
@pytest.mark.parametrize("kind", STEPS)
def test_an_error_of_the_disk_is_told_and_leaves_nothing_behind(
    kind: str, how: str, effort: int, tmp_path: Path
) -> None:
    step = STEPS[kind] if effort == 1 else 1
    done = run(
        [sys.executable, "-m", "tests.chaos.io_errors", kind, how, "0", str(step), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    fault_counts.count("full disks and I/O errors", int(done.stdout.split()[-1]))
    assert int(done.stdout.split()[-1]) > 0, "no call of this kind was made"
