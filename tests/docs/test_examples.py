"""Every example in the README and the manual does what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import Page, manual
from tests.docs.stage import POSTGRES, Stage

RUN = ("python", "console")
ELSEWHERE = {"docs/how-to/django.md"}
"""Pages that a test follows in an environment of their own: `test_django_page.py`."""
MAX_SKIPPED = 12
"""Blocks that are not run, in all pages together; nobody would notice if one were wrong."""


def pages() -> list[object]:
    """The pages that have something to run; those with PostgreSQL are marked."""
    found = []
    for page in manual():
        runs = [b for b in page.blocks if b.language in RUN and b.skipped is None]
        if runs and page.name not in ELSEWHERE:
            postgres = any(POSTGRES in block.text for block in runs)
            marks = [pytest.mark.postgres] if postgres else []
            found.append(pytest.param(page, postgres, id=page.name, marks=marks))
    return found


@pytest.mark.timeout(400)  # dozens of processes, on a busy machine
@pytest.mark.parametrize(("page", "postgres"), pages())
def test_the_examples_of_a_page_run(
    page: Page, postgres: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgres_url") if postgres else None
    with Stage(tmp_path, url) as stage:
        stage.run(page)
        stage.check_last()


def test_few_examples_are_left_out() -> None:
    left_out = [
        f"{page.name}:{block.line} ({block.skipped})"
        for page in manual()
        for block in page.blocks
        if block.skipped is not None
    ]
    assert len(left_out) <= MAX_SKIPPED, "\n".join(left_out)


def test_every_block_says_what_it_is() -> None:
    """A block without a language would never be run and never be missed."""
    nameless = [
        f"{page.name}:{block.line}"
        for page in manual()
        for block in page.blocks
        if block.language not in KNOWN
    ]
    assert not nameless, nameless


KNOWN = {
    *RUN,
    "output",
    "json",
    "toml",
    "ini",
    "sql",
    "text",
    "mermaid",
    "nginx",
    "dockerfile",
    "yaml",
}
