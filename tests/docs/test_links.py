"""Links between the pages lead somewhere, and every page can be reached."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, Page, every_page

PAGES = {page.path: page for page in every_page()}


@pytest.mark.parametrize("page", PAGES.values(), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Page) -> None:
    dead = [target for target in page.links if not leads_somewhere(page, target)]
    assert not dead, f"{page.name}: {dead}"


def leads_somewhere(page: Page, target: str) -> bool:
    """Whether a link points to a file of the project, and to a heading of it if it names one."""
    if target.startswith("https://"):
        return True
    file, _, anchor = target.partition("#")
    path = Path(posixpath.normpath(page.path.parent / file)) if file else page.path
    if ROOT not in (path, *path.parents) or not path.exists():
        return False
    return not anchor or anchor in PAGES[path].anchors


def test_the_index_leads_to_every_page_of_the_manual() -> None:
    index = PAGES[DOCS / "index.md"]
    linked = {
        Path(posixpath.normpath(index.path.parent / target.partition("#")[0]))
        for target in index.links
    }
    decisions = {path for path in PAGES if path.parent == DOCS / "adr"} - {DOCS / "adr/README.md"}
    front = {ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")}
    front.add(ROOT / "tests" / "README.md")
    front.add(DOCS / "benchmarks.md")  # it is there only where somebody has measured
    missing = PAGES.keys() - linked - decisions - front - {index.path}
    assert not missing, sorted(map(str, missing))


def test_pictures_are_there_and_are_small() -> None:
    shown = {
        (page.path.parent / target).resolve()
        for page in PAGES.values()
        for target in re.findall(r'(?:!\[[^\]]*\]\(|(?:src|srcset)=")([^)"]+)', page.prose)
    }
    assert DOCS / "pictures" / "overview-dark.png" in shown
    assert [path for path in shown if not path.is_file() or path.stat().st_size > 200_000] == []
    unused = set((DOCS / "pictures").iterdir()) - shown
    assert unused == set()


def test_a_dead_link_is_seen() -> None:
    page = Page(DOCS / "made-up.md", "# One two\n[a](#one-two) [b](#three) [c](no.md) [d](../../x)")

    PAGES[page.path] = page
    try:
        found = {target: leads_somewhere(page, target) for target in ("#three", "no.md", "../../x")}
    finally:
        del PAGES[page.path]

    assert found == {"#three": False, "no.md": False, "../../x": False}
    assert page.links == ["#one-two", "#three", "no.md", "../../x"]
    assert page.anchors == {"one-two"}
