"""The page on reliability is current, and every fault on it has a test or a reason."""

from __future__ import annotations

from functools import cache

from tools.reliability_page import PAGE, Scenario, groups, marks, page, requirements


@cache
def scenarios() -> dict[int, Scenario]:
    """Every fault of the page by its number."""
    return {one.number: one for _, of_group in groups() for one in of_group}


def test_the_page_is_what_its_sources_give() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: python tools/reliability_page.py"


def test_every_fault_has_a_test_or_a_reason() -> None:
    assert list(scenarios()) == list(range(1, len(scenarios()) + 1))
    bare = [n for n, one in scenarios().items() if not one.shown_by and not one.reason]
    assert bare == []


def test_every_requirement_has_a_test_or_a_reason() -> None:
    assert list(requirements()) == [f"C{number}" for number in range(1, 25)]
    assert [name for name, (_, shown) in requirements().items() if not shown] == []


def test_no_reason_stands_beside_a_test() -> None:
    assert [n for n, one in scenarios().items() if one.shown_by and one.reason] == []


def test_every_mark_names_a_fault() -> None:
    assert marks("scenario").keys() <= scenarios().keys()
    assert marks("requirement").keys() <= requirements().keys()
