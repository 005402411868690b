"""The page on the life of a job says what the lifecycle table says."""

from __future__ import annotations

from tools.lifecycle_page import PAGE, page


def test_the_page_is_what_the_table_gives() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tools/lifecycle_page.py"
