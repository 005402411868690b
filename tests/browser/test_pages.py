"""Every page in a real browser: for everybody, at every width, whatever the jobs hold."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tenure import JobContext, NewJob, Tenure
from tenure.rules.search import Filter
from tests.browser.conftest import PATIENCE, WINDOWS, Window, flaws, flaws_of
from tests.support.http import ServerProcess
from tests.support.waiting import wait_until

expect.set_options(timeout=PATIENCE)
HOSTILE = '<script>window.owned = 1</script><img src=x onerror="window.owned=1">\u202edetrevni'
STICKS_OUT = """() => [...document.querySelectorAll('.card')].some(
    (card) => card.scrollWidth > card.clientWidth
              && getComputedStyle(card).overflowX === 'visible')"""
PATHS = ("/", "/ui/jobs", "/ui/queues", "/ui/workers", "/ui/failures", "/ui/machine", "/ui/bulk")


@pytest.fixture(scope="module")
def jobs(app: Tenure) -> Iterator[dict[str, str]]:
    """One job of each status, with names for them; queue `still` is paused."""
    app.queues.pause("still")
    long = {"text": "z" * 1_000_000, HOSTILE[:40]: HOSTILE}
    made = {
        "failed": app.enqueue("fake.fail", {"error": HOSTILE}, max_retries=1).id,
        "completed": app.enqueue("email", long).id,
        "pending": app.enqueue("email", {"to": HOSTILE}, queue="still").id,
        "cancelled": app.enqueue("email", queue="still").id,
        "processing": app.enqueue("fake.sleep", {"seconds": 600}).id,
    }
    app.cancel(made["cancelled"])
    for status, job_id in made.items():
        wait_until(lambda s=status, j=job_id: app.get(j).status == s, status)
    yield made
    app.cancel(made["processing"])


@pytest.fixture(scope="module")
def bulk(app: Tenure) -> str:
    """The address of a bulk action that has ended, with what it left alone."""
    app.enqueue("bulk", delay="1h")
    return f"/ui/bulk/{app.bulk.start('cancel', Filter(type='bulk')).id}"


def every_path(jobs: dict[str, str]) -> list[str]:
    shown = (f"/ui/jobs/{job_id}" for job_id in jobs.values())
    return [*PATHS, *shown, "/ui/bulk?action=cancel&queue=still", "/ui/sign-in"]


@WINDOWS
def test_pages_are_for_everybody(
    window: Window, jobs: dict[str, str], bulk: str, width: int, scheme: str, share: int
) -> None:
    options = {"color_scheme": scheme, "reduced_motion": "reduce"}
    page = window(viewport={"width": width, "height": 800}, **options)
    assert flaws_of(page, (*every_path(jobs), bulk), share) == []


def test_the_longest_names_stay_on_their_pages(window: Window, app: Tenure) -> None:
    """A name of 128 characters made the page of its job three times as wide as a phone."""
    name = f"{'x' * 63}.{'w' * 64}"
    job = app.enqueue(name, queue=name, delay="1d")
    app.schedules.create(name, NewJob(name, {}, {}), every="1d")
    with app.workflow(name) as flow:
        flow.add(NewJob(name, {}, {"queue": name}), name=name[:100])
    shown = (f"/ui/queues/{name}", f"/ui/schedules/{name}", f"/ui/workflows/{flow.id}")
    paths = [f"/ui/jobs/{job.id}", *shown, "/ui/queues", "/ui/schedules", "/ui/workflows"]
    for width in (360, 700, 1280):
        page = window(viewport={"width": width, "height": 800})
        assert flaws_of(page, [*paths, "/ui/jobs", "/"], 1_000) == []
        page.goto("/ui/queues")
        assert not page.evaluate(STICKS_OUT)
        none = page.locator("td[data-label=Limits] a").first
        assert none.bounding_box()["height"] < 40  # not a letter on each line


def test_the_jobs_of_a_year_stay_in_their_box(
    window: Window, app: Tenure, database: str, jobs: dict[str, str]
) -> None:
    """On a phone, a million was wider than its box in the picture of the state machine."""
    with contextlib.closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as file, file:
        file.execute("INSERT INTO tenure_tally VALUES ('completed', 'year', 'year', 315000000)")
    for width in (360, 1280):
        page = window(viewport={"width": width, "height": 800})
        page.goto("/ui/machine")
        box = page.locator(".machine [data-box=completed]:visible")
        number = box.locator(".jobs")
        expect(number).to_contain_text("315,")
        assert number.bounding_box()["width"] < box.locator("rect").bounding_box()["width"]
        page.goto("/")
        shown = page.locator(".counts .completed .big")
        expect(shown).to_contain_text("315,")
        assert shown.evaluate("element => element.scrollWidth <= element.clientWidth")
    tops = page.locator(".counts li").evaluate_all("all => all.map(one => one.offsetTop)")
    assert len(tops) >= 5
    assert len(set(tops)) == 1, "one row"
    app.stats.recount()


def test_a_job_that_waits_for_a_person_says_so_and_gets_an_answer(
    window: Window, tmp_path: Path
) -> None:
    """The fields of the form were as wide as four letters, and a wait of 3 days was 259200.0."""
    database = f"sqlite:///{tmp_path}/people.db"
    with Tenure(database) as app, ServerProcess(database) as server:

        @app.job
        def approve(context: JobContext) -> str:
            context.sleep("10ms")
            return str(context.wait_for_signal("refund_approved", timeout="3d"))

        job = approve.enqueue()
        with app.running():
            wait_until(lambda: app.get(job.id).status == "waiting", "waiting")
            page = window()
            page.goto(f"{server.url}/ui/jobs/{job.id}")
            expect(page.locator("[data-label=Result]")).to_have_text(["for 10ms", "at most 3d"])
            expect(page.get_by_text("suspended until a signal comes")).to_be_visible()
            name = page.get_by_label("Signal", exact=True)
            assert name.evaluate("field => field.scrollWidth <= field.clientWidth")
            page.get_by_role("textbox", name="payload").fill('"yes"')
            page.get_by_role("button", name="Send", exact=True).click()
            wait_until(lambda: app.get(job.id).result == "yes", "completed")
        page.close()  # its stream of events would miss the server


def test_on_a_phone_the_row_of_pages_shows_where_one_is(window: Window) -> None:
    page = window(viewport={"width": 360, "height": 800})
    page.goto("/ui/machine")
    expect(page.locator("nav [aria-current]")).to_be_in_viewport(ratio=0.9)


def test_on_a_phone_the_link_with_the_focus_is_in_the_window(window: Window) -> None:
    """The row was scrolled to its page, and Overview was 7 pixels left of the window."""
    page = window(errors_are_meant=True, viewport={"width": 375, "height": 800})
    page.goto("/ui/jobs/x")  # no page of the row
    page.get_by_role("link", name="Schedules").focus()
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Workflows")
    expect(page.locator(":focus")).to_be_in_viewport(ratio=0.99)
    page.goto("/ui/queues")
    expect(page.locator("nav [aria-current]")).to_be_in_viewport(ratio=0.9)
    page.locator(".brand").focus()
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Overview")
    expect(page.locator(":focus")).to_be_in_viewport(ratio=1)


COVERED = """(element) => {
    const { x, y, width, height } = element.getBoundingClientRect();
    const shown = document.elementFromPoint(x + width / 2, y + height / 2);
    return !element.contains(shown) && !shown?.contains(element) && element.outerHTML }"""

FOCUSED = """() => {
    const [here, style] = [document.activeElement, getComputedStyle(document.activeElement)];
    return [here.name || here.innerText, style.outlineStyle === 'solid' && style.outlineWidth,
            here.getBoundingClientRect().y] }"""


@pytest.mark.parametrize("width", [375, 768])
def test_nothing_covers_what_has_the_focus(window: Window, app: Tenure, width: int) -> None:
    """The bar of actions covered rows, and a phone cut off the box that selects all."""
    queue = f"covered{width}"
    for _ in range(12):
        app.enqueue("email", queue=queue, delay="1h")
    page = window(viewport={"width": width, "height": 700})
    page.goto(f"/ui/jobs?queue={queue}")
    expect(page.locator("#live")).to_have_text("live")
    page.get_by_role("link", name="Clear").focus()
    for _ in range(25):
        page.keyboard.press("Tab")
        assert not page.locator(":focus").evaluate(COVERED)
    expect(page.locator(":focus")).to_have_attribute("href", re.compile("/ui/jobs/"))


def test_the_focus_goes_down_the_filter(window: Window) -> None:
    """It left no trace in a date, and went up from the dates to Filter."""
    page = window()
    page.goto("/ui/jobs")
    page.locator(".filters summary").focus()
    page.keyboard.press("Enter")
    passed = []
    for _ in range(20):
        page.keyboard.press("Tab")
        passed.append(page.evaluate(FOCUSED))
        if passed[-1][0] == "Filter":
            break
    assert list(dict.fromkeys(name for name, _, _ in passed)) == ["from", "to", "Filter"]
    assert {outline for _, outline, _ in passed} == {"3px"}
    tops = [top for _, _, top in passed]
    assert tops == sorted(tops)


def test_a_page_prints_dark_on_light_and_in_full(window: Window, jobs: dict[str, str]) -> None:
    """Printers leave out the background of dark mode, and texts ended after 420 pixels."""
    page = window(color_scheme="dark")
    page.goto(f"/ui/jobs/{jobs['completed']}")
    page.emulate_media(media="print", color_scheme="dark")
    style = "element => { const s = getComputedStyle(element); return [s.color, s.maxHeight] }"
    assert page.locator("pre.json").evaluate(style) == ["rgb(27, 29, 32)", "none"]


def test_what_is_missing_is_said(window: Window) -> None:
    page = window(errors_are_meant=True)  # a 404 is one for the console
    page.goto("/ui/jobs/x")
    expect(page.get_by_role("heading", level=1)).to_have_text("No such job")
    assert flaws(page) == []


def test_hostile_jobs_do_nothing(window: Window, jobs: dict[str, str]) -> None:
    page = window()
    for path in every_path(jobs):
        page.goto(path)
        assert page.evaluate("window.owned") is None
    page.goto(f"/ui/jobs/{jobs['pending']}")
    shown = page.locator("pre.json").inner_text()
    assert "<script>window.owned = 1</script>" in shown
    assert "\\u202e" in shown
    page.goto(f"/ui/jobs/{jobs['completed']}")
    assert len(page.content()) < 60_000
    page.get_by_role("link", name="Show all").click()
    assert page.locator("body").inner_text().count("z") >= 1_000_000


def test_the_keyboard_is_enough(window: Window, jobs: dict[str, str]) -> None:
    page = window()
    page.goto("/ui/jobs")
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Skip to the content")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert float(outline.removesuffix("px")) >= 2
    page.keyboard.press("Enter")
    expect(page.locator(":focus")).to_have_id("main")
    page.keyboard.press("/")
    expect(page.locator(":focus")).to_have_attribute("name", "type")
    page.keyboard.type("fake.fail")
    page.keyboard.press("Enter")
    page.wait_for_url("**type=fake.fail**")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.locator("tbody a").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("fake.fail")
    page.wait_for_url("**/ui/jobs/*-*")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.locator(":focus").inner_text() == "Retry":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_contain_text("to run again")
    page.keyboard.press("Tab")  # the focus is still somewhere sensible
    assert page.evaluate("document.activeElement !== document.body")


@pytest.mark.parametrize("scripts", [True, False])
def test_every_action(window: Window, app: Tenure, jobs: dict[str, str], scripts: bool) -> None:
    queue = f"q{scripts}"
    ids = [app.enqueue("email", queue=queue, delay="1h").id for _ in range(5)]
    page = window(java_script_enabled=scripts)

    page.goto("/ui/queues")
    page.get_by_role("button", name=f"Pause queue {queue}").click()
    expect(page.locator("#message")).to_contain_text(f"Queue {queue} is paused.")
    page.goto("/ui/queues")
    expect(page.locator(f"#queue-{queue}")).to_contain_text("paused")
    page.locator(f"#queue-{queue} [data-label=Limits] a").click()
    page.get_by_label("Max pending").fill("7")
    page.get_by_role("button", name="Set limits").click()
    expect(page.locator("main")).to_contain_text("5 pending of at most 7")
    page.get_by_role("button", name=f"Resume queue {queue}").click()
    expect(page.locator("h1")).not_to_contain_text("paused")
    page.goto("/ui/queues")
    expect(page.locator(f"#queue-{queue} [data-label=Limits]")).to_have_text("7 pending")

    page.goto(f"/ui/jobs/{ids[0]}")
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("cancelled")
    assert app.history(ids[0])[-1].actor == "dashboard"

    page.goto(f"/ui/jobs?queue={queue}&status=pending")
    page.locator(f'input[value="{ids[1]}"]').check()
    page.locator(f'input[value="{ids[2]}"]').check()
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator("#message")).to_contain_text("2 jobs cancelled")
    expect(page.locator("tbody tr")).to_have_count(2)

    page.get_by_role("link", name="Cancel all…").click()
    page.get_by_role("button", name="Cancel 2 jobs").click()
    wait_until(
        lambda: all(app.get(job_id).status == "cancelled" for job_id in ids), "the bulk action"
    )
    for _ in range(100):
        if "done" in page.get_by_role("heading", level=1).inner_text():
            break
        page.wait_for_timeout(100)
        if not scripts:
            page.reload()
    expect(page.get_by_role("heading", level=1)).to_contain_text("done")


@pytest.mark.parametrize("answer", [None, 502])
def test_a_form_without_an_answer_says_so(window: Window, app: Tenure, answer: int | None) -> None:
    """Only screen readers were told if the server was away, and nobody of a gateway's page."""
    job = app.enqueue("report", delay="1h")
    page = window(errors_are_meant=True)
    page.goto(f"/ui/jobs/{job.id}")
    page.route(
        "**/cancel",
        lambda route: route.abort() if answer is None else route.fulfill(status=502, body="<p>no"),
    )
    page.get_by_role("button", name="Cancel", exact=True).click()
    said = page.get_by_text("The server did not answer: see whether it is done, and try again.")
    said.wait_for(state="visible")
    assert app.get(job.id).status == "pending"
    page.unroute("**/cancel")
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_text("The job is cancelled.").wait_for(state="visible")
    assert said.count() == 0


def test_a_list_is_held_while_somebody_selects(window: Window, app: Tenure) -> None:
    page = window()
    page.goto("/ui/jobs?type=held")
    expect(page.locator("#live")).to_have_text("live")
    app.enqueue("held", delay="1h")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.locator("tbody input").check()
    expect(page.locator(".bulkbar")).to_contain_text("1 selected")
    app.enqueue("held", delay="1h")
    expect(page.locator("#live")).to_have_text("held while you select")
    assert page.locator("tbody tr").count() == 1
    page.locator("tbody input").uncheck()
    expect(page.locator("tbody tr")).to_have_count(2)


def test_a_long_error_leaves_the_names_of_jobs_whole(window: Window, app: Tenure) -> None:
    error = {"fail_times": "a text, which the payload does not allow"}
    job = app.enqueue("fake.flaky", error, queue="narrow", max_retries=1)
    wait_until(lambda: app.get(job.id).status == "failed", "failed")
    page = window(viewport={"width": 900, "height": 800})
    page.goto("/ui/jobs?queue=narrow")
    heights = page.locator("td[data-label=Job] a").evaluate_all(
        "links => links.map(link => link.getBoundingClientRect().height)"
    )
    assert heights == [26], "one line"
