"""A newcomer's first minute: see jobs move, find out why one failed, run it again, see it complete.

In a window of its own each, with JavaScript and without.
"""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PATIENCE, Window
from tests.support.waiting import wait_until

expect.set_options(timeout=PATIENCE)


def open_failed(page: Page) -> None:
    """From the overview to the job that failed once and would now succeed."""
    page.get_by_role("link", name=re.compile("failed [0-9]")).first.click()
    once = page.locator("tbody tr", has_text="fake.flaky").filter(has_text="1/1")
    once.first.get_by_role("link").click()


def test_with_javascript(page: Page) -> None:
    page.goto("/")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Nothing here yet")
    page.evaluate("window.same = true")  # gone if the page is ever loaded again
    page.get_by_role("button", name="Add sample jobs").click()
    expect(page.locator("#message")).to_have_text(re.compile("16 sample jobs added"))
    expect(page.locator("#live")).to_have_text("live")
    completed = page.locator(".counts .completed .big")
    expect(completed).not_to_have_text("0")
    first = int(completed.inner_text())
    expect(completed).not_to_have_text(str(first))  # it moves by itself
    expect(page.locator(".counts .failed .big")).to_have_text("2")
    assert page.evaluate("window.same") is True

    open_failed(page)
    expect(page.get_by_role("heading", level=1)).to_contain_text("fake.flaky failed")
    expect(page.locator(".explain")).to_contain_text("It failed for good")
    expect(page.locator(".attempts pre")).to_contain_text("fail_times 1: attempt 1 fails")
    page.evaluate("window.same = true")
    page.get_by_role("button", name="Retry", exact=True).click()
    expect(page.locator("#message")).to_have_text(re.compile("to run again"))
    expect(page.get_by_role("heading", level=1)).to_contain_text("fake.flaky completed")
    expect(page.locator("#announce")).to_contain_text("completed")
    assert page.evaluate("window.same") is True
    steps = page.locator(".steps b").all_inner_texts()
    assert steps == [
        "enqueued",
        "claimed by a worker",
        "attempt failed",
        "to be retried",
        "claimed by a worker",
        "completed",
    ]


def test_without_javascript(window: Window) -> None:
    page = window(java_script_enabled=False)
    page.goto("/")
    page.get_by_role("button", name="Add sample jobs").click()
    expect(page.locator("#message")).to_have_text(re.compile("16 sample jobs added"))

    def reload_until(what: str, text: str) -> None:
        for _ in range(100):
            if text in page.locator(what).inner_text():
                return
            page.wait_for_timeout(100)
            page.reload()
        raise AssertionError(f"{what} never said {text}")

    page.goto("/ui/jobs?type=fake.flaky")
    reload_until("tbody tr:first-child", "failed")
    once = page.locator("tbody tr", has_text="failed").filter(has_text="1/1")
    once.first.get_by_role("link").click()
    expect(page.locator(".attempts pre")).to_contain_text("attempt 1 fails")
    page.get_by_role("button", name="Retry", exact=True).click()
    expect(page.locator("#message")).to_have_text(re.compile("to run again"))
    reload_until("h1", "completed")


@pytest.mark.parametrize("width", [360, 1280])
def test_the_machine_shows_moves_as_they_happen(window: Window, width: int) -> None:
    page = window(viewport={"width": width, "height": 800})
    page.goto("/ui/machine")
    expect(page.locator("#live")).to_have_text("live")
    page.evaluate(
        """() => { window.dots = 0; new MutationObserver((all) => all.forEach(
        (one) => one.addedNodes.forEach((node) => node.classList
        && node.classList.contains('dot') && window.dots++)))
        .observe(document.body, { childList: true, subtree: true }); }"""
    )
    page.request.post("/jobs", data={"type": "email"})
    # enqueued, claimed, completed
    wait_until(lambda: page.evaluate("window.dots") >= 3, "three dots")
    wait_until(lambda: page.evaluate("document.querySelectorAll('.dot').length") == 0, "their end")
