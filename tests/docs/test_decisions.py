"""The decisions have a date and a status, numbers without holes, and a table that is true."""

from __future__ import annotations

import re
from datetime import date

from tests.docs.pages import DOCS

FOLDER = DOCS / "adr"
PAGES = {path.name: path.read_text("utf-8") for path in sorted(FOLDER.glob("0*.md"))}
HEAD = re.compile(
    r"# (?P<number>\d+)\. (?P<title>.+)\n\n"
    r"- Date: (?P<date>\d{4}-\d\d-\d\d)\n- Status: (?P<status>.+)\n\n"
)
STATUS = re.compile(
    r"(accepted(, not built)?|superseded by \[.+)(; (amended by|amends|supersedes) \[.+)*"
)
PAIRS = {"amends": "amended by", "supersedes": "superseded by"}


def heads() -> dict[str, re.Match[str]]:
    return {name: head for name, text in PAGES.items() if (head := HEAD.match(text))}


def test_every_decision_has_its_number_a_date_and_a_status() -> None:
    assert [name for name in PAGES if name not in heads()] == []
    for name, head in heads().items():
        assert int(head["number"]) == int(name[:4]), name
        assert date.fromisoformat(head["date"]), name
        assert STATUS.fullmatch(head["status"]), name


def test_numbers_have_no_holes() -> None:
    assert [int(name[:4]) for name in PAGES] == list(range(1, len(PAGES) + 1))


def test_a_decision_that_changes_another_is_named_there() -> None:
    for name, head in heads().items():
        for verb, back in PAIRS.items():
            changed = re.search(rf"\b{verb} (.*)", head["status"])
            for other in re.findall(r"\((0\d+[^)]*)\)", changed[1]) if changed else ():
                assert f"{back} [{head['number']}]({name})" in heads()[other]["status"], name


def test_the_table_says_what_the_pages_say() -> None:
    table = (FOLDER / "README.md").read_text("utf-8")
    for name, head in heads().items():
        status = head["status"].partition(":")[0]
        row = f"| [{head['number']}]({name}) | {head['title']} | {head['date']} | {status} |"
        assert row in table, name
    assert len(re.findall(r"^\| \[", table, re.MULTILINE)) == len(PAGES)
