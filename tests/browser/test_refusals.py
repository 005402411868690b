"""Forms that the server refuses: what a person typed stays, and the page says what to do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tenure import Tenure
from tests.browser.conftest import PATIENCE, Window
from tests.support.http import ServerProcess

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def token(database: str) -> str:
    with Tenure(database) as app:
        app.queues.limit("default", max_pending=9)
        return app.tokens.create("op", ["admin"])[0]


@pytest.fixture(scope="module")
def served(database: str, token: str) -> Iterator[ServerProcess]:
    with ServerProcess(database) as server:
        yield server


def sign_in(page: Page, token: str) -> None:
    page.get_by_label("Token").fill(token)
    page.keyboard.press("Enter")


def sign_out_elsewhere(page: Page) -> None:
    """In another tab, while this page is hidden and asks for nothing."""
    other = page.context.new_page()
    other.goto("/ui/jobs")
    other.get_by_role("button", name="Sign out").click()
    expect(other.locator("#message")).to_contain_text("You are signed out")
    other.close()


def test_a_new_job_stays_when_its_session_ends(window: Window, token: str) -> None:
    """The page to sign in took the place of the payload, and led to the overview."""
    page = window(errors_are_meant=True)
    page.goto("/ui/new?type=email")
    sign_in(page, token)
    page.get_by_label("payload").fill('{"to": "typed by hand"}')
    sign_out_elsewhere(page)
    page.get_by_role("button", name="New job").click()
    expect(page.locator("#message")).to_contain_text("Nothing was done: you are signed out.")
    expect(page.get_by_label("payload")).to_have_value('{"to": "typed by hand"}')
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Sign in").click()
    sign_in(popup.value, token)
    popup.value.wait_for_url("**/ui/new?type=email")
    popup.value.close()
    page.get_by_role("button", name="New job").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("email pending")
    expect(page.locator("main")).to_contain_text("typed by hand")


def test_a_live_page_waits_for_its_session(window: Window, token: str) -> None:
    """A refresh would lead it to sign in, without what was typed."""
    page = window(errors_are_meant=True)
    page.goto("/ui/queues/default")
    sign_in(page, token)
    expect(page.locator("#live")).to_have_text("live")
    page.get_by_label("Max pending").fill("17")
    sessions = [one for one in page.context.cookies() if one["name"] == "tenure_session"]
    page.route("**/ui/queues/default", lambda route: route.abort())  # no refresh before the click
    page.context.clear_cookies(name="tenure_session")
    page.get_by_role("button", name="Set limits").click()
    expect(page.locator("#message")).to_contain_text("Nothing was done: you are signed out.")
    page.unroute("**/ui/queues/default")
    expect(page.get_by_label("Max pending")).to_have_value("17")
    page.context.add_cookies(sessions)  # signed in again
    page.get_by_role("button", name="Set limits").click()
    expect(page.locator("#message")).to_contain_text("The limits of queue default are set.")
    expect(page.locator("main")).to_contain_text("of at most 17")
    expect(page.locator("#live")).to_have_text("live")


def test_a_refresh_without_a_session_leaves_what_was_typed(
    window: Window, database: str, token: str
) -> None:
    """The page reloaded itself to sign in, and a half-filled form was gone."""
    page = window(errors_are_meant=True)
    page.goto("/ui/queues/default")
    sign_in(page, token)
    expect(page.locator("#live")).to_have_text("live")
    page.get_by_label("Max pending").fill("18")
    sessions = [one for one in page.context.cookies() if one["name"] == "tenure_session"]
    page.context.clear_cookies(name="tenure_session")
    with Tenure(database) as app:
        app.enqueue("email")
    expect(page.locator("#message")).to_contain_text("You are signed out.")
    expect(page.locator("#live")).to_contain_text("signed out since")
    expect(page.get_by_label("Max pending")).to_have_value("18")
    page.context.add_cookies(sessions)
    page.get_by_role("button", name="Set limits").click()
    expect(page.locator("main")).to_contain_text("of at most 18")
    expect(page.locator("#live")).to_have_text("live")


def test_a_mistyped_limit_leaves_the_others(window: Window, token: str) -> None:
    page = window(errors_are_meant=True)
    page.goto("/ui/queues/default")
    sign_in(page, token)
    page.get_by_label("Max pending").fill("1,000")
    page.get_by_label("Max running", exact=True).fill("lots")
    page.get_by_role("button", name="Set limits").click()
    expect(page.locator("#message")).to_contain_text("give a whole number")
    expect(page.get_by_label("Max pending")).to_have_value("1,000")
    page.get_by_label("Max running", exact=True).fill("5")
    page.get_by_role("button", name="Set limits").click()
    expect(page.locator("#message")).to_contain_text("The limits of queue default are set.")
    expect(page.locator("main")).to_contain_text("of at most 1,000")


def test_without_scripts_signing_in_leads_back(window: Window, token: str) -> None:
    page = window(errors_are_meant=True, java_script_enabled=False)
    page.goto("/ui/new?type=email")
    sign_in(page, token)
    page.get_by_label("payload").fill("{}")
    page.context.clear_cookies(name="tenure_session")
    page.get_by_role("button", name="New job").click()
    expect(page.locator("#message")).to_contain_text("Nothing was done: you are signed out.")
    sign_in(page, token)
    page.wait_for_url("**/ui/new?type=email")
