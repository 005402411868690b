"""The web site builds from the pages: its links lead somewhere, and it fetches nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tenure.lifecycle import TRANSITIONS, Status
from tests.docs.pages import DOCS
from tools.site import build, flaws, moved, navigation, places


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "site"
    assert build(folder) == []
    return folder


def test_every_page_of_the_documentation_is_in_the_site(site: Path) -> None:
    pages = {Path(place).with_suffix(".html") for place in places().values() if ".md" in place}
    assert [page for page in pages if not (site / page).is_file()] == []


def test_every_page_for_users_is_in_the_navigation() -> None:
    listed = [page for _, pages in navigation() for page in pages]
    assert len(set(listed)) == len(listed)
    folders = ("how-to", "explanation", "reference")
    written = {
        path.relative_to(DOCS).as_posix() for name in folders for path in (DOCS / name).glob("*.md")
    }
    assert written - set(listed) == set()


def test_the_state_machine_is_drawn(site: Path) -> None:
    page = (site / "reference" / "lifecycle.html").read_text("utf-8")
    drawn = page.partition('<svg viewBox="0 0 1080')[2].partition("</svg>")[0]
    assert {transition.event for transition in TRANSITIONS} | set(Status) <= set(
        re.findall(r">(\w+)</text>", drawn)
    )
    assert "stateDiagram" not in page


def test_pages_can_be_searched(site: Path) -> None:
    assert "idempotency" in (site / "search.json").read_text("utf-8").lower()


def test_dead_links_and_what_comes_from_elsewhere_are_seen(tmp_path: Path) -> None:
    (tmp_path / "other.html").write_text('<h1 id="there">There</h1>')
    (tmp_path / "page.html").write_text(
        '<a href="other.html#there"></a><a href="other.html#gone"></a><a href="gone.html"></a>'
        '<a href="https://example.com/"></a><img src="gone.png">'
        '<script src="https://cdn.example.com/x.js"></script>'
    )
    assert list(flaws(tmp_path)) == [
        "page.html fetches https://cdn.example.com/x.js",
        "page.html links to other.html#gone, where there is no such heading",
        "page.html links to gone.html, which is not there",
        "page.html links to gone.png, which is not there",
    ]


def test_links_are_led_to_where_pages_stand_in_the_site() -> None:
    text = (
        "[a](../../ARCHITECTURE.md#x) [b](../adr/README.md) [c](../../src/tenure/app.py) "
        "![d](../pictures/d.png) [e](#here) [f](https://example.com/x.md)\n"
        "```text\n[g](../../ARCHITECTURE.md)\n```\n"
    )
    where = {**places(), "docs/pictures/d.png": "pictures/d.png"}
    assert moved(text, "docs/how-to/enqueue.md", where) == (
        "[a](../architecture.md#x) [b](../adr/index.md) c "
        "![d](../pictures/d.png) [e](#here) [f](https://example.com/x.md)\n"
        "```text\n[g](../../ARCHITECTURE.md)\n```\n"
    )
