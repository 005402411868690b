"""The page on the life of a job says what the lifecycle table says."""

from __future__ import annotations

from pathlib import Path

from tenure.lifecycle import TRANSITIONS
from tools.lifecycle_page import PAGE, page

README = Path(__file__).parents[2] / "README.md"


def test_the_page_is_what_the_table_gives() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tools/lifecycle_page.py"


def test_the_first_page_counts_the_rows_of_the_table() -> None:
    assert f"One table of {len(TRANSITIONS)} rows" in README.read_text(encoding="utf-8")
