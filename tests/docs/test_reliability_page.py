"""The page on reliability is current, and every fault on it has a test or a reason."""

from __future__ import annotations

from tools.reliability_page import PAGE, groups, marks, page, requirements

SCENARIOS = {one.number: one for _, scenarios in groups() for one in scenarios}


def test_the_page_is_what_its_sources_give() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: python tools/reliability_page.py"


def test_every_fault_has_a_test_or_a_reason() -> None:
    assert list(SCENARIOS) == list(range(1, len(SCENARIOS) + 1))
    bare = [n for n, one in SCENARIOS.items() if not one.shown_by and not one.reason]
    assert bare == []


def test_every_requirement_has_a_test_or_a_reason() -> None:
    assert list(requirements()) == [f"C{number}" for number in range(1, 25)]
    assert [name for name, (_, shown) in requirements().items() if not shown] == []


def test_no_reason_stands_beside_a_test() -> None:
    assert [n for n, one in SCENARIOS.items() if one.shown_by and one.reason] == []


def test_every_mark_names_a_fault() -> None:
    assert marks("scenario").keys() <= SCENARIOS.keys()
    assert marks("requirement").keys() <= requirements().keys()
