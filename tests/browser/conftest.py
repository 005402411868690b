"""A Chromium and a server for each module, a fresh window for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from tenure import Tenure
from tests.support.chromium import chromium
from tests.support.http import ServerProcess

PATIENCE = 30_000
"""Milliseconds: far above what anything here takes, so that a busy machine is no failure."""
RULES = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "resultTypes": ["violations"],  # of all else, one node a rule: telling it takes the longest
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A browser takes its time."""
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here:
            item.add_marker("slow")


@pytest.fixture(scope="module")  # as long as it lasts, asyncio takes this thread for its loop's
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('browser')}/jobs.db"


@pytest.fixture(scope="module")
def served(database: str) -> Iterator[ServerProcess]:
    """A server whose worker pretends."""
    with ServerProcess(database, "--fake-handlers") as server:
        yield server


@pytest.fixture(scope="module")
def app(database: str, served: ServerProcess) -> Iterator[Tenure]:
    """The same database, from here."""
    with Tenure(database) as app:
        yield app


Window = Callable[..., Page]
WINDOWS = pytest.mark.parametrize(
    ("width", "scheme", "share"),
    [
        (360, "dark", 2),
        (1280, "light", 2),
        pytest.param(360, "dark", 1, marks=pytest.mark.full),
        pytest.param(1280, "light", 1, marks=pytest.mark.full),
    ],
)
"""In `make test`, axe looks at each page in one of two windows, in `make chaos` in both."""


@pytest.fixture
def window(browser: Browser, served: ServerProcess) -> Iterator[Window]:
    """Opens windows on the server. Whatever a page complains about fails the test."""
    contexts = []
    complaints: list[str] = []

    def open_window(*, errors_are_meant: bool = False, **options: Any) -> Page:
        context = browser.new_context(**{"base_url": served.url, **options})
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        if not errors_are_meant:
            page.on("console", lambda m: m.type == "error" and complaints.append(m.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield open_window
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(window: Window) -> Page:
    return window()


def flaws(page: Page) -> list[str]:
    """What axe finds on a page."""
    found = Axe().run(page, options=RULES).response["violations"]
    return [f"{page.url} {one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]


def flaws_of(page: Page, paths: Iterable[str], share: int) -> list[str]:
    """What is wrong with pages in this window; axe looks at one of so many of them."""
    found = []
    assert page.viewport_size is not None
    width = page.viewport_size["width"]
    for number, path in enumerate(paths):
        page.goto(path)
        if (number + (width < 1000)) % share == 0:
            found += flaws(page)
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            found.append(f"{path} is {wide} wide")
        assert page.evaluate("window.owned") is None
    return found
