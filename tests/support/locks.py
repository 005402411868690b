"""What the lock files of the project pin."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def name_of(requirement: str) -> str:
    """The normalised name at the start of a requirement, as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]).lower()


def pinned(lock: str) -> dict[str, str]:
    """The version of every package in a lock file."""
    lines = (ROOT / lock).read_text().splitlines()
    pins = (line.split("==", 1) for line in lines if "==" in line and not line.startswith(" "))
    return {name_of(name): version.split()[0] for name, version in pins}
