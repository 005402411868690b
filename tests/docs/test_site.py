"""The web site builds from the pages: its links lead somewhere, and it fetches nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tenure.lifecycle import TRANSITIONS, Status
from tests.docs.pages import DOCS
from tests.support.chromium import chromium
from tools.site import LAST, build, flaws, moved, navigation, places, ranked


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
    drawn_events = {rule.event for rule in TRANSITIONS if rule.source is not rule.target}
    labels = re.findall(r">([\w, ]+)</text>", drawn)
    assert drawn_events | set(Status) <= {word for label in labels for word in label.split(", ")}
    assert "stateDiagram" not in page


def test_pages_can_be_searched(site: Path) -> None:
    assert "idempotency" in (site / "search.json").read_text("utf-8").lower()


FULL = pytest.mark.full


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, site: Path) -> Iterator[Page]:
    """The home page of the site, opened as a file. What a page complains about fails the test."""
    complaints: list[str] = []
    with browser.new_context() as context:
        context.set_default_timeout(30_000)
        page = context.new_page()
        page.on("console", lambda m: m.type == "error" and complaints.append(m.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((site / "index.html").as_uri())
        yield page
    assert complaints == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    ["cron", "retry after", *(pytest.param(w, marks=FULL) for w in ("transaction", "fastapi"))],
)
def test_pages_opened_as_files_can_be_searched(page: Page, site: Path, words: str) -> None:
    page.locator(".md-search__button").first.click()
    page.get_by_role("combobox").or_(page.locator("input[type=text]:visible")).first.fill(words)
    first = page.locator("ol a[href*='?h=']").first
    first.wait_for()
    found = first.get_attribute("href") or ""
    assert Path(found.removeprefix("file://").partition("?")[0]).is_relative_to(site)
    first.click()
    page.wait_for_url("**/*h=*")
    text = page.locator("article").inner_text().lower()
    assert all(word in text for word in words.split())


@pytest.mark.slow
def test_decisions_are_found_after_all_other_pages(page: Page, site: Path) -> None:
    page.wait_for_function("window.__index")
    places = page.evaluate(
        """async () => {
            const search = new Worker("");
            const ask = message => new Promise(resolve => {
                search.onmessage = answer => resolve(answer.data);
                search.postMessage(message);
            });
            await ask({ type: 0, data: __index });
            const found = [];
            for (let page; ; ) {
                const { data } = await ask({ type: 2, data: { input: "lease", page } });
                found.push(...data.items.map(item => __index.items[item.id].location));
                if (!(page = data.pagination.next)) return found;
            }
        }"""
    )
    kinds = [place.removeprefix(f"{site.as_uri()}/").startswith(LAST) for place in places]
    assert set(kinds) == {False, True}
    assert kinds == sorted(kinds)


@pytest.mark.slow
def test_commands_are_copied_without_prompt_and_output(page: Page, site: Path) -> None:
    page.goto((site / "how-to" / "install.html").as_uri())
    page.evaluate("document.body.prepend(document.createElement('textarea'))")

    def copied(block: str) -> str:
        page.locator(f"{block} button[data-md-type=copy]").first.click()
        page.locator("textarea").fill("")
        page.locator("textarea").press("Control+V")
        return page.locator("textarea").input_value()

    text = copied(".highlight:has(.gp)")
    assert text.strip()
    assert "$ " not in text
    session = copied(".highlight:has(.gp):has(.go)")
    shown = page.locator(".highlight:has(.gp):has(.go)").first.inner_text()
    assert len(session.splitlines()) == len(re.findall(r"^[$>] ", shown, re.MULTILINE))


def test_a_search_program_that_sorts_in_another_way_ends_the_build() -> None:
    assert ranked("a.items.sort(b(...c))", 7) == "a.items.sort(b((x,y)=>(x.id>=7)-(y.id>=7),...c))"
    with pytest.raises(ValueError, match="sorts in another way"):
        ranked("a.items.toSorted(b)", 7)


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
