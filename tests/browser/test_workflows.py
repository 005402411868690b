"""The pages of workflows in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tenure import NewJob, Tenure
from tests.browser.conftest import PATIENCE, WINDOWS, Window, flaws_of

expect.set_options(timeout=PATIENCE)
HOSTILE = "<script>window.owned=1</script>"


@pytest.fixture(scope="module")
def workflow(app: Tenure) -> str:
    """One whose first jobs are due in an hour, with a long name and a hostile key."""
    with app.workflow("import", key=HOSTILE, actor=HOSTILE) as flow:
        pages = [flow.add(NewJob("fetch", {}, {"delay": "1h"})) for _ in range(50)]
        total = flow.add(NewJob("sum", {}, {}), depends_on=pages)
        flow.add(NewJob("a" * 128, {}, {}), depends_on=[total.failed])
        flow.add(NewJob("clean_up", {}, {}), depends_on=[total.settled])
    return flow.id


@WINDOWS
def test_pages_are_for_everybody(
    window: Window, workflow: str, width: int, scheme: str, share: int
) -> None:
    options = {"color_scheme": scheme, "reduced_motion": "reduce"}
    page = window(viewport={"width": width, "height": 800}, **options)
    assert flaws_of(page, ("/ui/workflows", f"/ui/workflows/{workflow}"), share) == []


def test_a_graph_is_live(window: Window, app: Tenure, workflow: str) -> None:
    page = window()
    page.goto(f"/ui/workflows/{workflow}")
    expect(page.get_by_role("link", name="fetch: 50 pending")).to_be_visible()
    app.cancel(app.find(workflow=workflow, type="fetch")[0].id)
    expect(page.get_by_role("link", name="fetch: 49 pending, 1 cancelled")).to_be_visible()
    page.get_by_role("link", name="fetch: 49 pending").press("Enter")
    page.wait_for_url(f"**/ui/jobs?workflow={workflow}&type=fetch")
