"""The page on the command line says what the commands say of themselves."""

from __future__ import annotations

from tenure.cli.command import EXIT_CODES, REFUSED
from tools.cli_page import PAGE, page


def test_the_page_is_what_the_commands_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tools/cli_page.py"


def test_the_page_has_every_exit_code() -> None:
    for code in {0, 130, REFUSED, *EXIT_CODES.values()}:
        assert f"\n| {code} | " in page()
