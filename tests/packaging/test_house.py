"""tools/house.py counts what it says, so that its ceilings hold what they promise."""

from __future__ import annotations

from pathlib import Path

from tools.house import Import, circles, imports_of, lines_by_kind, room_of

MODULE = '''"""What it is.

More."""

import json  # code behind it
from typing import TYPE_CHECKING

from tenure.rules import jobs

if TYPE_CHECKING:
    from tenure.app.app import Tenure


# Why.
def load(text: str) -> object:
    """Load."""
    from tenure.values.payload import parse

    return parse(json.loads(text))
'''


def test_lines_are_counted_by_kind() -> None:
    assert lines_by_kind(MODULE) == {
        "docstrings": 4,
        "imports": 5,
        "comments": 1,
        "code": 3,
        "blank": 6,
    }


def test_imports_are_of_a_module_at_once_later_or_for_types(tmp_path: Path) -> None:
    path = tmp_path / "here.py"
    path.write_text(MODULE)
    known = {"rules", "rules.jobs", "app.app", "values.payload", "values"}
    assert set(imports_of("here", path, known)) == {
        Import("here", "rules.jobs", "top"),
        Import("here", "app.app", "types"),
        Import("here", "values.payload", "late"),
    }
    assert {room_of(name) for name in ("store.sqlite.writer", "store")} == {"store"}


def test_circles_are_found_and_chains_are_not() -> None:
    chain = [("a", "b"), ("b", "c"), ("c", "d")]
    assert circles(chain) == []
    assert circles([*chain, ("c", "a"), ("d", "e"), ("e", "d")]) == [["a", "b", "c"], ["d", "e"]]
