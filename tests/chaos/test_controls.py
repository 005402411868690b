"""The negative controls fit the source as it is. To run them all takes an hour, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.controls import CONTROLS, ROOT, UNNEEDED, Control, broken, caught_by, guards


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.words.replace(" ", "_"))
def test_each_control_breaks_something(control: Control, tmp_path: Path) -> None:
    path = broken(control, tmp_path) / "tenure" / control.file
    assert control.new in path.read_text("utf-8")


def test_the_tests_that_hold_rules_are_there() -> None:
    for control in CONTROLS:
        if control.held_by:
            file, name = control.held_by.split("::")
            assert f"def {name}(" in (ROOT / file).read_text("utf-8")


def test_what_need_not_be_caught_is_there() -> None:
    assert UNNEEDED.keys() <= {control.words for control in guards()}


def test_no_two_conditions_share_a_name() -> None:
    """Else a reason for the one would excuse the other, too."""
    names = [control.words for control in guards()]
    assert len(names) == len(set(names))


def test_there_are_many() -> None:
    assert len(CONTROLS) >= 30
    assert len({control.words for control in guards()}) >= 50


@pytest.mark.full
def test_a_broken_rule_is_caught() -> None:
    (control,) = [one for one in CONTROLS if one.words == "retries need no budget"]
    assert caught_by(control).startswith("rules: tests/unit/test_lifecycle.py")
