"""The page on the Python interface says what the code and its docstrings say."""

from __future__ import annotations

from tools.python_page import PAGE, page


def test_the_page_is_what_the_code_gives() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tools/python_page.py"
