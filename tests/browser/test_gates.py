"""Signing in and out, reading only, and a server that goes away, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tenure import Tenure
from tests.browser.conftest import PATIENCE, Window
from tests.support.http import ServerProcess

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def tokens(database: str) -> dict[str, str]:
    """A token by scope; there being some, the server asks for one."""
    with Tenure(database) as app:
        made = {scope: app.tokens.create(f"t-{scope}", [scope])[0] for scope in ("read", "admin")}
        app.enqueue("email", delay="1h")
        app.queues.limit("default", max_pending=9)
        return made


@pytest.fixture(scope="module")
def served(database: str, tokens: dict[str, str]) -> Iterator[ServerProcess]:
    with ServerProcess(database) as server:
        yield server


def test_signing_in_and_out(window: Window, tokens: dict[str, str]) -> None:
    page = window(errors_are_meant=True)  # a wrong token is one for the console
    page.goto("/ui/jobs?type=email")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("is not valid here")
    page.get_by_label("Token").fill(tokens["admin"])
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/jobs?type=email")
    assert tokens["admin"] not in page.content()
    assert page.evaluate("document.cookie") == ""
    expect(page.locator("#live")).to_have_text("live")
    page.get_by_role("link", name="email").click()
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator(".steps")).to_contain_text("token:t-admin")
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("#message")).to_contain_text("You are signed out")
    page.goto("/ui/jobs")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_the_page_is_not_refreshed_once_another_comes(
    window: Window, tokens: dict[str, str]
) -> None:
    """A refresh beside a sign-out took its message, or went to sign in by itself."""
    page = window()
    page.clock.install(time=0)
    page.clock.pause_at(1)  # from here on only the test moves it, so that no refresh takes long
    page.goto("/ui/jobs?type=email")
    page.get_by_label("Token").fill(tokens["read"])
    page.keyboard.press("Enter")
    expect(page.locator("#live")).to_be_visible()  # its stream has begun
    page.route("**/ui/sign-out", lambda route: route.fulfill(status=204))  # the page stays
    with page.expect_response("**/ui/jobs?type=email"):
        page.clock.run_for(1_000)
    with page.expect_response("**/ui/sign-out"):
        page.get_by_role("button", name="Sign out").click()
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    page.clock.run_for(9_000)
    assert fetched == []
    with page.expect_request("**/ui/jobs?type=email"):  # somebody stopped the sign-out
        page.clock.run_for(2_000)


def test_reading_only(window: Window, tokens: dict[str, str]) -> None:
    page = window()
    page.goto("/")
    page.get_by_label("Token").fill(tokens["read"])
    page.keyboard.press("Enter")
    expect(page.locator(".who")).to_contain_text("t-read read-only")
    for path in ("/ui/jobs", "/ui/queues"):
        page.goto(path)
        expect(page.locator("tbody tr").first).to_be_visible()
        assert page.locator("main button:visible").all_inner_texts() in ([], ["Filter"])


def test_a_server_that_goes_away_is_said_and_found_again(
    window: Window, database: str, tokens: dict[str, str]
) -> None:
    with ServerProcess(database) as first:
        page = window(errors_are_meant=True, base_url=first.url)
        page.goto("/ui/machine")
        page.get_by_label("Token").fill(tokens["read"])
        page.keyboard.press("Enter")
        expect(page.locator("#live")).to_have_text("live")
        first.stop()
    expect(page.locator("#live")).to_contain_text(re.compile(r"^connection lost since .*\d"))
    expect(page.locator("#announce")).to_contain_text("Connection lost")
    with ServerProcess(database, "--port", str(first.address[1])):
        expect(page.locator("#live")).to_have_text("live")


def test_a_page_that_cannot_be_read_again_does_not_say_live(
    window: Window, tokens: dict[str, str]
) -> None:
    """The server answers with problems while its database is away; the stream stays open."""
    page = window(errors_are_meant=True)
    page.goto("/")
    page.get_by_label("Token").fill(tokens["read"])
    page.keyboard.press("Enter")
    expect(page.locator("#live")).to_have_text("live")
    page.route("**/", lambda route: route.fulfill(status=503))
    expect(page.locator("#live")).to_contain_text("not up to date since")
    expect(page.locator("#announce")).to_contain_text("Not up to date since")
    page.unroute("**/")
    expect(page.locator("#live")).to_have_text("live")
    expect(page.locator("#announce")).to_contain_text("Connected again")
