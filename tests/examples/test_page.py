"""The page of the shop in a browser: an order and its receipt, and a bar that moves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.examples.programs import serving
from tests.support.chromium import chromium

pytestmark = pytest.mark.slow
PICTURES = os.environ.get("TENURE_TEST_PICTURES")
"""A folder for pictures of the page, to look at."""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[httpx2.Client]:
    url = f"sqlite+aiosqlite:///{tmp_path}/shop.db"
    says = r"running on (http://\S+)"
    with serving("examples.fastapi_shop", says, DATABASE_URL=url, SHOP_PASSWORD="pass") as client:
        yield client


@pytest.fixture
def page(shop: httpx2.Client) -> Iterator[Page]:
    with chromium() as browser:
        page = browser.new_page(base_url=str(shop.base_url))
        page.goto("/")
        yield page


def test_wishes_16_17_18_an_import_moves_and_stops(page: Page) -> None:
    page.get_by_role("button", name="Place order").click()
    expect(page.get_by_text("to the customer: receipt for order 1")).to_be_visible(timeout=20_000)
    expect(page.get_by_text("order 1 of ann: charged")).to_be_visible()

    bar = page.locator("#import-bar")
    page.get_by_role("button", name="Start").click()
    page.get_by_role("button", name="Sync ann").click()
    page.get_by_role("button", name="Sync ann").click()
    expect(page.locator("#sync-says")).to_contain_text("ann: page", timeout=20_000)
    page.wait_for_function("document.getElementById('import-bar').value > 4", timeout=20_000)
    first = bar.evaluate("bar => bar.value")
    page.wait_for_function(f"document.getElementById('import-bar').value > {first}", timeout=20_000)
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / "shop.png", full_page=True)

    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#import-says")).to_contain_text("cancelled", timeout=20_000)
    assert bar.evaluate("bar => bar.value") < 50
    expect(page.locator("#sync-says")).to_have_text("ann is up to date", timeout=20_000)
    expect(page.get_by_text("is not complete")).to_be_visible(timeout=20_000)

    page.get_by_label("Password").fill("pass")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("link", name="Overview")).to_be_visible(timeout=20_000)
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / "dashboard.png", full_page=True)
